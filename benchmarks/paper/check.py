"""Whether the paper says what the results say: what is generated is theirs, all is used, and no number is typed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from crosslens.adapters import InputError

from .generate import FOLDER, there
from .macros import SWITCHES, switch
from .scanner import read_names, typed
from .tex import commands, files, line_of, live, without_comments

_DEFINES = re.compile(
    r"\\(?:newcommand|renewcommand|providecommand|def|gdef|edef|xdef|let)\*?\s*\{?\\(res[A-Z][A-Za-z]*)"
)
_NEW = re.compile(r"\\newcommand\{\\(res[A-Za-z]+)\}")
_TRUE = re.compile(r"\\has([a-z]+)true")
_SWITCHED = re.compile(r"\\has[a-z]+(?:true|false)(?![A-Za-z])")
_OURS = re.compile(r"res[A-Z][A-Za-z]*")


def check(made: Mapping[str, bytes], paper: Path) -> list[str]:
    """Everything that is wrong with the paper in folder `paper`, one line each.

    Args:
        made: what is generated from the results, as `generate.generated` gives it.
        paper: folder of the sources.

    Raises:
        InputError: there is no paper, or a file of it cannot be read.
    """
    sources = read_sources(paper)
    names = read_names(paper / "names.txt")
    found = list(differing(made, paper))
    for file, text in sources.items():
        found += [
            f"{file}:{each.line}: {each.text!r} is typed; make it a macro, or declare it in names.txt if it is a name"
            for each in typed(text, names)
        ]
    text = made["macros.tex"].decode()
    known, alive = set(_NEW.findall(text)), set(_TRUE.findall(text))
    return [*found, *unused(known, sources, made), *undefined(known, alive, sources)]


def read_sources(paper: Path) -> dict[str, str]:
    """File -> text of every LaTeX source that a hand wrote.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    if not paper.is_dir():
        raise InputError(f"there is no folder {paper}; name that of the paper by --paper")
    paths = sorted(path for path in paper.rglob("*.tex") if FOLDER not in path.relative_to(paper).parts)
    if not paths:
        raise InputError(f"{paper} holds no .tex file; name the folder of the paper by --paper")
    try:
        return {path.relative_to(paper).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{paper}: {error}") from error


def differing(wanted: Mapping[str, bytes], paper: Path) -> Iterator[str]:
    """What is generated otherwise, or not at all, or no longer."""
    lying = {path.relative_to(paper / FOLDER).as_posix(): path for path in there(paper)}
    for file, data in wanted.items():
        if file not in lying:
            yield f"{FOLDER}/{file} is missing; run `crosslens paper`"
        elif (was := lying[file].read_bytes()) != data:
            yield f"{FOLDER}/{file} differs from the results{_where(was, data)}; run `crosslens paper`"
    yield from (f"{FOLDER}/{file} is of no result; run `crosslens paper`" for file in lying if file not in wanted)


def _where(was: bytes, data: bytes) -> str:
    """The first line that differs, where both are texts."""
    try:
        old, new = was.decode().splitlines(), data.decode().splitlines()
    except UnicodeDecodeError:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f" from line {place + 1} on"


def unused(known: Collection[str], sources: Mapping[str, str], wanted: Collection[str]) -> Iterator[str]:
    """Macros that no source uses, and tables, figures and listings that none shows."""
    used = {name for text in sources.values() for name, _ in commands(text)}
    yield from (rf"\{each} is used nowhere" for each in sorted(known) if each not in used)
    for study in SWITCHES:
        if f"ifhas{switch(study)}" not in used:
            yield rf"\ifhas{switch(study)} is used nowhere"
    shown = {
        name.removeprefix(f"{FOLDER}/")
        for text in sources.values()
        for command in ("input", "includegraphics", "lstinputlisting")
        for name in files(text, command)
    }
    for file in wanted:
        if not {file, file.rpartition(".")[0]} & shown:
            yield f"{FOLDER}/{file} is shown nowhere"


def undefined(known: Collection[str], there: Collection[str], sources: Mapping[str, str]) -> Iterator[str]:
    """Macros that a source uses where the results have none, and those that it defines over them."""
    for file, text in sources.items():
        plain = without_comments(text)
        for found in _DEFINES.finditer(plain):
            yield rf"{file}:{line_of(text, found.start())}: \{found[1]} is generated; do not define it"
        for found in _SWITCHED.finditer(plain):
            yield rf"{file}:{line_of(text, found.start())}: {found[0]} is generated; do not set it"
        try:
            alive = live(text, there)
        except ValueError as error:
            yield f"{file}: {error}"
            continue
        for name, place in commands(alive):
            if name.startswith("ifhas") and name.removeprefix("ifhas") not in map(switch, SWITCHES):
                yield rf"{file}:{line_of(text, place)}: there is no study for \{name}"
            if _OURS.fullmatch(name) and name not in known:
                yield rf"{file}:{line_of(text, place)}: the results have no \{name} here; put it into \ifhas... \fi"
