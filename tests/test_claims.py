"""The defects of pyvene and tdhook that adapters are fenced against: where one is gone, its fence may go."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version

import pytest

import crosslens.benchmarks.claims as claims

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
