"""A backend in a distribution of its own is found by its entry point and held to the same promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crosslens.adapters import CAPABILITIES

Crosslens = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def crosslens(tmp_path_factory: pytest.TempPathFactory) -> Crosslens:
    """The command line, in a process that has the example installed."""
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(Path(__file__).parent / "third_party", folder / "source")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-build-isolation")
    subprocess.run([*pip, "--no-deps", "--target", folder / "site", source], check=True, timeout=120)
    environment = os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "crosslens.benchmarks.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    return call


def test_it_is_listed_beside_the_others(crosslens: Crosslens) -> None:
    found = {entry["name"]: entry for entry in json.loads(crosslens("backends", "--json").stdout)}
    assert found["global_hooks"]["library"] == "torch"
    assert found["global_hooks"]["outcomes"] is None, "crosslens keeps no outcomes of other people's backends"
    assert found["hooks"]["outcomes"] is not None


def test_it_passes_the_kit(crosslens: Crosslens, tmp_path: Path) -> None:
    ended = crosslens("check", "global_hooks", "--save", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kept = json.loads((tmp_path / "global_hooks.json").read_text())
    states = {name: proof["state"] for name, proof in kept["capabilities"].items()}
    assert set(states) == set(CAPABILITIES)
    assert states["edit.resid_mid"] == "supported"
    assert states["capture.pattern"] == "never"
    assert kept["passed"] > 1000
    assert "global_hooks" in crosslens("backends", "--outcomes", str(tmp_path), "--format", "md").stdout


def test_a_misspelled_name_is_told_about_it(crosslens: Crosslens) -> None:
    ended = crosslens("check", "global_hook")
    assert ended.returncode == 2
    assert "did you mean 'global_hooks'?" in ended.stderr
