"""Studies of several parts that are cut go on with the part that they were in, and come to what they would have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from crosslens.benchmarks.claims.__main__ import by_library
from crosslens.benchmarks.claims.__main__ import main as claims
from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.idioms.__main__ import main as idioms
from crosslens.benchmarks.idioms.catalogue import LIBRARIES
from crosslens.benchmarks.mistakes import programs
from crosslens.benchmarks.mistakes.__main__ import main as mistakes
from crosslens.benchmarks.mistakes.judge import Outcome
from crosslens.benchmarks.program import Parts
from crosslens.benchmarks.stories.__main__ import main as stories
from crosslens.benchmarks.stories.running import FINDS

from .test_runner import RUN

KEPT = {
    name: json.loads((RUN / "studies" / f"{name}.json").read_text())
    for name in ("claims", "idioms", "mistakes", "stories")
}


def of_claims(library: str) -> Any:
    return [row for row in KEPT["claims"] if row["name"].partition("_")[0] == library]


def of_idioms(library: str) -> Any:
    return [row for row in KEPT["idioms"] if row["library"] == library]


def of_mistakes(library: str) -> Any:
    return [Outcome(**row) for row in KEPT["mistakes"]["outcomes"] if row["library"] == library]


def of_stories(name: str) -> Any:
    return KEPT["stories"]["stories"][name]


@pytest.mark.parametrize(
    ("main", "measures", "parts", "of", "measured"),
    [
        (claims, "claims.__main__.run", list(by_library()), of_claims, lambda kept: kept),
        (idioms, "idioms.__main__.rows", list(LIBRARIES), of_idioms, lambda kept: kept),
        (mistakes, "mistakes.__main__.of", list(programs.LIBRARIES), of_mistakes, lambda kept: kept["outcomes"]),
        (stories, "stories.__main__.of", list(FINDS), of_stories, lambda kept: kept["stories"]),
    ],
)
def test_a_study_that_was_cut_goes_on(
    main: Callable[..., Any],
    measures: str,
    parts: list[str],
    of: Callable[[str], Any],
    measured: Callable[[Any], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, asked = measures.partition(".")[0], []

    def measure(part: Any, *_: object) -> Any:
        name = part if isinstance(part, str) else part[0].partition("_")[0]  # claims are given by the names of all
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return of(name)

    monkeypatch.setattr(f"crosslens.benchmarks.{measures}", measure)
    page = tmp_path / f"{study}.md"
    given = {"out": page} if study in ("claims", "stories") else {"library": None, "out": page}
    given |= {"idioms": {"operation": None}, "mistakes": {"mistake": None}}.get(study, {})
    with pytest.raises(KeyboardInterrupt):
        main(**given)
    assert not page.exists(), "a page says that everything was measured"
    assert not page.with_suffix(".json").exists(), "a page could not be rendered from a part"
    with contextlib.suppress(typer.Exit):  # how idioms ends
        main(**given)
    assert asked == [*parts[:3], *parts[2:]], "what was kept is not measured again"
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json"}
    kept = json.loads(page.with_suffix(".json").read_text())
    assert json.dumps(measured(kept)) == json.dumps(measured(KEPT[study]))  # as text: some claims come to nan


def test_parts_of_other_software_or_of_a_whole_study_are_not_taken_up(tmp_path: Path) -> None:
    page, here = tmp_path / "some.md", environment([])
    Parts(page, here).add("a", 1)
    assert Parts(page, here) == {"a": 1}
    assert Parts(page, here | {"source": "another"}) == {}
    page.write_text("# all of it\n")
    assert Parts(page, here) == {}
    assert Parts(None, here) == {}
    Parts(None, here).add("b", 2)
    assert json.loads(page.with_suffix(".parts").read_text())["parts"] == {"a": 1}
