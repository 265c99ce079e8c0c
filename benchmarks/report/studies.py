"""What each study of a run says: its page, and before it a map or curves of the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosslens.adapters import InputError
from crosslens.benchmarks.studies import STUDIES, pages

from . import pages as markdown
from .blocks import Block, Prose, Section, Table
from .drawings import DRAWINGS
from .programs import Programs

_TITLES = {
    "correctness": "Correctness",
    "overhead": "Overhead",
    "scaling": "Scaling",
    "costs": "What crosslens' own work costs",
    "published": "Published claims",
    "claims": "Silent errors of libraries",
    "mistakes": "Mistakes",
    "residue": "What is left behind",
    "idioms": "What it takes to say it",
    "known_truth": "Known truth",
    "stories": "What was hard and is now short",
    "coverage": "How often the intervals hold the truth",
}
"""Of the sections, in their order; others follow."""


def sections(run: Path, programs: Programs) -> tuple[list[Section], list[str]]:
    """(a section for each study that the run holds, names of those that it does not hold).

    Raises:
        InputError: a study's file is damaged.
    """
    found = pages(run)
    folder = run / "studies"
    for path in sorted(folder.glob("*.md")) if folder.is_dir() else ():
        if path.stem not in found:  # one that another version made, or whose measurements were not kept
            try:
                found[path.stem] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path} cannot be read: {error}") from error
    names = [*(n for n in _TITLES if n in found), *sorted(n for n in found if n not in _TITLES)]
    made = []
    for name in names:
        title, blocks = markdown.blocks(found[name], programs)
        made.append(
            Section(name, _TITLES.get(name, title or name), _illustrated(name, folder, blocks, programs), title)
        )
    return made, [name for name in STUDIES if name not in found]


def _illustrated(name: str, folder: Path, page: Sequence[Block], programs: Programs) -> Sequence[Block]:
    """The page with drawings of its figures after its introduction."""
    kept = folder / f"{name}{STUDIES[name].kept}" if name in STUDIES else None
    if name not in DRAWINGS or kept is None or not kept.exists():
        return page
    try:
        drawn = DRAWINGS[name](kept, programs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{kept} cannot be drawn: {error!r}; run the study again") from error
    first = next((i for i, block in enumerate(page) if isinstance(block, Table) or _starts(block)), len(page))
    return [*page[:first], *drawn, *page[first:]]


def _starts(block: Block) -> bool:
    """Whether it is a heading."""
    return isinstance(block, Prose) and block.level > 0
