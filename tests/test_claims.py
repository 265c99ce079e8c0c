"""The defects that adapters are fenced against: where one is gone, its fence may go. comgra's are in its own tests."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version

import pytest

import crosslens.benchmarks.claims as claims
from crosslens.benchmarks.claims.__main__ import run

from .test_runner import ROOT

for backend in ("pyvene", "tdhook"):  # the adapter first: it imports pyvene without nnsight, which changes the process
    pytest.importorskip(f"crosslens.adapters.{backend}", exc_type=ImportError)

NAMES = [module.name for module in pkgutil.iter_modules(claims.__path__)]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("pyvene_", "tdhook_"))])
def test_a_defect_is_still_there(name: str) -> None:
    module = importlib.import_module(f"{claims.__name__}.{name}")
    found = module.main()
    assert found["holds"] is True, found
    assert found["observed"].keys() == found["expected"].keys()
    assert found["observed"] != found["expected"]
    library = name.partition("_")[0]
    assert found["library"] == library
    assert found["version"].startswith(version(library))
    assert module.__doc__.startswith(f"{library} {version(library)}"), "what is claimed is claimed of this version"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith(("pyvene_", "tdhook_", "comgra_", "_"))]
)
def test_a_defect_is_still_there_in_a_process_of_its_own(name: str) -> None:
    """These libraries change the process that imports them, or take long to import."""
    found = run(name)
    assert found["holds"] is True, found
    assert found["observed"].keys() == found["expected"].keys()
    assert found["version"] == version(found["library"])
    text = (ROOT / "benchmarks" / "claims" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith(f'"""{found["library"]} {found["version"]}: ')


def test_what_is_committed_names_every_claim() -> None:
    text = (ROOT / "results" / "claims.md").read_text(encoding="utf-8")
    assert {name for name in NAMES if not name.startswith("_")} == {
        name for name in NAMES if f"| yes | [{name}.py]" in text
    }
