"""Every silent error of the census is still there on the pinned versions; where one is gone, its fence may go too."""

from __future__ import annotations

import importlib
from importlib.metadata import version

import pytest

from crosslens.benchmarks.claims.__main__ import _complete, by_library, names, right, run, table, title

from .test_runner import RUN

HERE = ("comgra", "pyvene", "tdhook")
"""Libraries that leave this process as it is; the others have one of their own each, for all of their claims."""

for backend in ("pyvene", "tdhook"):  # the adapter first: it imports pyvene without nnsight, which changes the process
    pytest.importorskip(f"crosslens.adapters.{backend}", exc_type=ImportError)

CLAIMS = by_library()
PAGE = (RUN / "studies" / "claims.md").read_text(encoding="utf-8")


def check(name: str, found: dict[str, object]) -> None:
    """It holds, of this version, and what is expected is something else than what is observed."""
    assert found["holds"] is True, f"{name} no longer holds: {found}"
    observed, expected = found["observed"], found["expected"]
    assert isinstance(observed, dict)
    assert isinstance(expected, dict)
    assert observed.keys() == expected.keys()
    assert observed != expected
    library, said = str(found["library"]), str(found["version"])
    assert said.startswith(version(library))
    assert title(name).startswith(f"{library} {version(library)}"), "what is claimed is claimed of this version"
    assert found["upstream"] == "not found upstream" or str(found["upstream"]).startswith("https://github.com/")
    assert right(name), "no word on the right way"


@pytest.mark.parametrize("name", [name for library in HERE for name in CLAIMS[library]])
def test_a_silent_error_is_still_there(name: str) -> None:
    check(name, importlib.import_module(f"crosslens.benchmarks.claims.{name}").main())


@pytest.mark.parametrize("library", [library for library in CLAIMS if library not in HERE])
def test_the_silent_errors_of_a_library_are_still_there(library: str) -> None:
    found = run(CLAIMS[library])
    assert [each["name"] for each in found] == CLAIMS[library]
    for each in found:
        check(each["name"], each)


def test_what_is_committed_names_every_claim() -> None:
    assert [name for name in names() if f"[{name}.py](../../../benchmarks/claims/{name}.py) | yes |" not in PAGE] == []
    assert f"{len(names())} hold: " in PAGE
    assert "not reproduce" not in PAGE


def test_one_that_ends_in_an_error_does_not_hold() -> None:
    found = _complete({"name": "pyvene_freezes", "error": "KeyError: 'x'"})
    assert found["holds"] is False
    assert table([found]).splitlines()[-1].endswith("| no |")
    assert "KeyError: 'x'" in table([found])


def test_the_list_says_what_happens_without_judging_it() -> None:
    judging = (
        "bad",
        "terrible",
        "broken",
        "buggy",
        "surprising",
        "unfortunately",
        "dangerous",
        "obviously",
        "terribly",
    )
    assert [word for word in judging if f" {word} " in PAGE.casefold()] == []
