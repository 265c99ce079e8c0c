"""Make mistakes with one library, each in a process forked from one that has imported it.

`python -m crosslens.benchmarks.mistakes.one LIBRARY [MISTAKE]...` prints an outcome a line, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .catalogue import BY_NAME, Mistake
from .judge import Material, Outcome, judge
from .programs import Programs, programs, states
from .scene import Scene

SECONDS = 120
"""How long a program may take."""


def outcomes(library: str, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """What comes of the mistakes, all or those named, one after the other.

    What was meant is computed first, in a process that has not imported the library.
    """
    torch.set_num_threads(1)  # a forked process has no other threads to wait for
    held, scene = programs(library), Scene(_backend(library))
    mistakes = [BY_NAME[name] for name in names or BY_NAME]
    made = [mistake for mistake in mistakes if mistake.name in held.made]
    meant = {m.name: None if m.result is None or m.name in held.meant else m.result(scene) for m in made}
    for name in held.imports if made else ():
        importlib.import_module(name)
    for mistake in mistakes:
        if mistake.name in held.made:
            yield _apart(held, mistake, meant[mistake.name], scene)
        else:
            absent, impossible = held.reason(mistake.name), held.impossible.get(mistake.name, "")
            yield judge(library, mistake, None, Material(absent=absent, impossible=impossible))


def _backend(library: str) -> str:
    found = re.search(r"\((\w+)\)", library)
    return found[1] if found else "hooks"


def _apart(held: Programs, mistake: Mistake, meant: Tensor | None, scene: Scene) -> Outcome:
    """Run one program in a forked process; a crash and a process that does not end are outcomes too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            if mistake.name in held.meant:
                meant = held.meant[mistake.name](scene)
            found = judge(held.library, mistake, meant, _make(held, mistake, scene))
            os.write(writer, json.dumps(found.as_dict()).encode())
        except BaseException:  # in what was meant or in the judge, not in the program
            os.write(writer, json.dumps({"bug": traceback.format_exc()}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    received, end, late = b"", time.monotonic() + SECONDS, False
    while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        received += piece
    else:
        late = True
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if received and not late:
        answer = json.loads(received)
        if "bug" in answer:
            raise RuntimeError(f"{held.library}, {mistake.name}: {answer['bug']}")
        return Outcome(**answer)
    how = f"it did not end in {SECONDS} seconds" if late else f"exit status {status}"
    return Outcome(held.library, mistake.name, "error", says=f"the process died: {how}")


def _make(held: Programs, mistake: Mistake, scene: Scene) -> Material:
    """Run the program here, with everything that reaches the console kept."""
    documented = held.documented.get(mistake.name)
    kept: dict[str, Any] = {
        "culprit": held.culprits.get(mistake.name, ""),
        "note": held.notes.get(mistake.name, ""),
    }
    with tempfile.TemporaryFile() as console:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(console.fileno(), stream)
        try:
            kept["value"] = held.made[mistake.name](scene)
        except BaseException as error:  # whatever the library raises is what the user sees
            kept |= {"error": _text(error), "raised_in": traceback.extract_tb(error.__traceback__)[-1].filename}
        sys.stdout.flush()
        sys.stderr.flush()
        console.seek(0)
        kept["said"] = console.read().decode(errors="replace")
    if documented and states(*documented):
        kept["documented"] = documented[1]
    return Material(**kept)


def _text(error: BaseException) -> str:
    """`Type: message`, with the notes that were added to it."""
    notes = getattr(error, "__notes__", ())
    return f"{type(error).__name__}: {' '.join([str(error), *notes])}"


if __name__ == "__main__":
    for outcome in outcomes(sys.argv[1], sys.argv[2:]):
        print(json.dumps(outcome.as_dict()), flush=True)
