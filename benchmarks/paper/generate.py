"""All that is generated, as bytes by file: macros, tables, figures, and the programs that are shown with their "
"output."""

from __future__ import annotations

from pathlib import Path

from crosslens.adapters import InputError
from crosslens.tasks.parts import replace_file

from . import figures, macros, tables
from .sources import Results

FOLDER = "generated"

_SHOWN = {
    "swap": ("swap_backend", "for backend in BACKENDS:", None, 100),
    "kinds": ("two_kinds", "with open_inspector", "found = ", 6),
    "sick": ("sick_training", "with Recorder(", "            optimizer.step()", None),
}
"""Listing -> program, the lines from and to which it is shown, by their beginnings, and lines of what it printed."""


def listings(results: Results) -> dict[str, str]:
    """File -> part of a program, or what it printed.

    Raises:
        InputError: a program has no such lines.
    """
    found = {}
    if "stories" in results.studies:
        for file, (program, first, last, lines) in _SHOWN.items():
            story = results.studies["stories"]["stories"][program]
            found[f"{file}.py"] = _part(program, story["program"], first, last)
            if lines is not None:
                found[f"{file}.txt"] = "\n".join(story["output"].rstrip().splitlines()[:lines]) + "\n"
    return found


def _part(program: str, text: str, first: str, last: str | None) -> str:
    lines = text.rstrip().splitlines()
    try:
        start = next(i for i, line in enumerate(lines) if line.startswith(first))
        end = len(lines) if last is None else next(i for i in range(start, len(lines)) if lines[i].startswith(last)) + 1
    except StopIteration:
        raise InputError(f"examples/{program}.py has no line that begins with {first!r} and then {last!r}") from None
    return "\n".join(lines[start:end]) + "\n"


def generated(results: Results) -> dict[str, bytes]:
    """File, under `FOLDER`, -> its bytes."""
    found = {"macros.tex": macros.render(results).encode()}
    found |= {f"tables/{file}.tex": text.encode() for file, text in tables.render(results).items()}
    found |= {f"listings/{file}": text.encode() for file, text in listings(results).items()}
    return found | {f"figures/{file}.pdf": data for file, data in figures.render(results).items()}


def write(found: dict[str, bytes], paper: Path) -> list[Path]:
    """Write what differs, and remove what is no longer generated.

    Returns:
        What was written or removed.

    Raises:
        InputError: it cannot be written.
    """
    folder = paper / FOLDER
    changed = []
    try:
        for file, data in found.items():
            path = folder / file
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
                changed.append(path)
        for path in there(paper):
            if path.relative_to(folder).as_posix() not in found:
                path.unlink()
                changed.append(path)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return changed


def there(paper: Path) -> list[Path]:
    """Every file that lies under `FOLDER`."""
    return sorted(path for path in (paper / FOLDER).rglob("*") if path.is_file())
