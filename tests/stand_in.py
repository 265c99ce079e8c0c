"""Stands in for a worker in tests of what becomes of one: `python -S -P stand_in.py FOLDER`, of the standard library.

It does what job.json says under `behave`, or else what a file `behave` beside the run's folder says, or nothing odd,
and leaves what a worker leaves. Beside the run's folder it keeps a `journal`: a line as it begins and one as it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOREVER = "import time; time.sleep(600)"


def note(folder: Path, word: str, cell: str) -> None:
    """One line, in one write."""
    file = os.open(folder.parent.parent / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{word} {cell}\n".encode())
    os.close(file)


def keep(folder: Path, **more: Any) -> None:
    """cell.json, as `worker.Report` writes it."""
    job = json.loads((folder / "job.json").read_text())
    status = "done" if job.get("kind") == "reference" else "right"
    cell = {"status": status, "stage": "timing", "reason": None, "figures": {"task_s": 0.5}, "version": "1"} | more
    samples = [{"order": "bare,step", "bare_s": 1.0, "step_s": 1.5}] * 3
    (folder / "cell.json.part").write_text(json.dumps({"cell": cell, "samples": samples}))
    os.replace(folder / "cell.json.part", folder / "cell.json")


def finish(folder: Path, **more: Any) -> None:
    """Leave a result, and say that all is done."""
    (folder / "result.npz").write_bytes(b"arrays")
    (folder / "result.csv").write_text("x\n1\n")
    keep(folder, finished=True, **more)


def children(folder: Path) -> None:
    """One in this group, one in a session of its own, one that is nobody's child any more, without an environment."""
    subprocess.Popen([sys.executable, "-S", "-c", FOREVER, str(folder)])
    subprocess.Popen([sys.executable, "-S", "-c", FOREVER, str(folder)], start_new_session=True)
    daemon = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-S', '-c', {FOREVER!r}, sys.argv[1]], env={{}}, start_new_session=True)"
    )
    subprocess.run([sys.executable, "-S", "-c", daemon, str(folder)], check=True, start_new_session=True)


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    told = folder.parent.parent / "behave"
    behave = job.get("behave") or (told.read_text() if told.exists() else "")
    cell = job.get("id", "x")
    note(folder, "begin", cell)
    keep(folder, stage="running the task")
    print("last words", flush=True)
    match behave:
        case "segfault":
            ctypes.string_at(0)
        case "exit 0":
            sys.exit(0)
        case "exit 3":
            os._exit(3)
        case "exit 1 when done":
            finish(folder)
            os._exit(1)
        case "hang":
            time.sleep(600)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "eat":
            held = bytearray(400_000_000)
            time.sleep(600)
            print(len(held))
        case "fill the address space":
            resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))
            bytearray(1_000_000_000)
        case "print":
            for _ in range(1600):
                sys.stdout.write("x" * 62_499 + "\n")
            print("last of all")
        case "print one line":
            for _ in range(1600):
                sys.stdout.write("x" * 62_500)
        case "say its score":
            print(Path("/proc/self/oom_score_adj").read_text(), flush=True)
            os._exit(3)
        case "fork":
            children(folder)
        case "fork and hang":
            children(folder)
            print("hanging", flush=True)
            time.sleep(600)
        case "close its output":
            os.close(1)
            os.close(2)
            time.sleep(0.3)
        case "long reason":
            finish(folder, status="failed", reason="y" * 1_000_000, traceback="z" * 1_000_000)
            return
        case "fill the disk":
            try:
                with (folder.parent / "filler").open("ab", buffering=0) as filler:
                    while filler.write(bytes(4096)):
                        pass
            except OSError:
                finish(folder)
                raise
        case "real":
            command = [sys.executable, "-P", "-m", "crosslens.benchmarks.worker", str(folder)]
            if job.get("backend") == "nnsight":
                os.execv(sys.executable, command)
        case "":
            pass
        case _:
            raise AssertionError(behave)
    finish(folder)
    note(folder, "end", cell)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
