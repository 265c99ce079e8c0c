"""What a sweep has finished, in a file, so that a sweep that was cut goes on where it was.

The first line says which sweep it is, each other one is an element: its number, dtype, and metric as hexadecimal
floats, which lose nothing. A line that was being written when the sweep was cut counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Edit, InputError
from crosslens.adapters.inputs import Inputs

SCHEMA = 1


class SweepStore:
    """Finished elements of one sweep.

    Args:
        path: a file that this class wrote for the same sweep, or none yet.
        facts: what makes it that sweep.

    Attributes:
        found: number of an element -> (batch,).

    Raises:
        InputError: the file is another sweep's, no sweep's, of a newer version, or cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self._path = path
        head = json.dumps({"sweep": SCHEMA, **facts})
        self.found: dict[int, Tensor] = {}
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            if lines:
                self._check(lines[0], head)
                whole = [line for line in lines if line.endswith(b"\n")]
                for line in whole[1:]:
                    number, dtype, values = json.loads(line)
                    exact = torch.tensor([float.fromhex(v) for v in values], dtype=torch.float64)
                    self.found[number] = exact.to(getattr(torch, dtype))
                if len(whole) < len(lines):
                    part = path.with_name(f".{path.name}.part")
                    part.write_bytes(b"".join(whole))
                    os.replace(part, path)
            self._file = path.open("ab")
            if not lines:
                self._write(head)
        except OSError as error:
            raise InputError(f"out={str(path)!r} cannot be read or written: {error}") from error
        except ValueError as error:
            raise InputError(f"out={str(path)!r} is damaged: {error}; name another file") from error

    def add(self, values: Mapping[int, Tensor]) -> None:
        """Keep elements.

        Raises:
            InputError: the disk is full; what was kept before is whole.
        """
        try:
            lines = [
                json.dumps([i, str(value.dtype).removeprefix("torch."), [v.hex() for v in value.double().tolist()]])
                for i, value in values.items()
            ]
            self._write("\n".join(lines))
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error}; what is there already is kept") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, line: bytes, head: str) -> None:
        try:
            kept = json.loads(line)
            schema = kept["sweep"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"out={str(self._path)!r} holds something else than a sweep; name another file") from None
        if schema != SCHEMA:
            raise InputError(f"out={str(self._path)!r} is of schema {schema!r}; this version reads {SCHEMA}")
        now = json.loads(head)
        if differ := [name for name in now if kept.get(name) != now[name]]:
            raise InputError(
                f"out={str(self._path)!r} is of another sweep: its {', '.join(differ)} differ; name another file"
            )


def facts_of(backend: str, weights: str, ready: Inputs, edits: Sequence[Sequence[Edit]]) -> dict[str, Any]:
    """What tells one sweep from another, but for the metric, which is code."""
    given = hashlib.blake2b(digest_size=8)
    for name, value in sorted(ready.kwargs.items()):
        if isinstance(value, Tensor):
            given.update(name.encode() + str(tuple(value.shape)).encode() + _bytes(value))
    what = hashlib.blake2b(digest_size=8)
    for element in edits:
        for edit in element:
            selected = [_plain(getattr(edit, part)) for part in ("rows", "positions", "heads", "units")]
            what.update(repr((edit.kind, edit.site, selected)).encode())
            value = edit.value
            what.update(
                _bytes(value) if isinstance(value, Tensor) else b"f" if callable(value) else repr(value).encode()
            )
        what.update(b"|")
    return {
        "backend": backend, "weights": weights, "inputs": given.hexdigest(), "edits": what.hexdigest(),
        "elements": len(edits),
    }  # fmt: skip


def _plain(selection: Any) -> Any:
    return selection.tolist() if isinstance(selection, Tensor) else selection


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().double().numpy().tobytes()
