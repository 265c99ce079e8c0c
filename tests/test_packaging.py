"""The distribution as its users get it: what it ships, what it declares, what importing it costs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

import pytest

from crosslens.adapters import BackendNotInstalledError, Inspector, load_backend

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BACKENDS: dict[str, str] = PROJECT["entry-points"]["crosslens.adapters"]
CODE = ("adapters", "tasks", "benchmarks")  # each may import only those before it
LIBRARIES = {
    *("transformer_lens", "nnsight", "nnterp", "pyvene", "torchlens", "baukit", "tdhook", "comgra"),
    *("inseq", "captum", "jax", "jaxlib", "penzai", "treescope"),
}
MAX_LINES = 420
MACHINE_PATH = re.compile(r"(?<![\w.:/~$}-])/(?:home|root|Users|work|tmp|opt|mnt|srv)/\w|\b[A-Z]:\\Users\\")


def project_name(requirement: str) -> str:
    """The normalized name that a requirement starts with."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by absolute name."""
    package = ("crosslens", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*start, *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def in_tree(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# What it imports


@pytest.mark.parametrize(
    "module",
    ["crosslens.adapters", "crosslens.adapters.conformance", "crosslens.tasks", "crosslens.benchmarks.run"],
)
def test_importing_imports_no_backend_library(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert module in loaded
    assert not LIBRARIES & {name.partition(".")[0] for name in loaded}


def test_loading_a_backend_leaves_the_random_states_as_they_are() -> None:
    """JAX draws from numpy's generator when it is imported."""
    code = """
import random, sys, numpy as np, torch
from crosslens.adapters import load_backend
state = lambda: (repr(np.random.get_state()), random.getstate(), torch.get_rng_state().tolist())
before = state()
load_backend("penzai")
assert "jax" in sys.modules
assert state() == before
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", modules(*CODE), ids=in_tree)
def test_imports_point_one_way(path: Path) -> None:
    above = CODE[CODE.index(path.relative_to(ROOT).parts[0]) + 1 :]
    wrong = [name for name in imports(path) for top in above if f"{name}.".startswith(f"crosslens.{top}.")]
    assert not wrong, f"{in_tree(path)} imports {wrong}: imports point benchmarks -> tasks -> adapters"


def test_every_import_is_declared() -> None:
    groups = [PROJECT["dependencies"], *(needs for extra, needs in EXTRAS.items() if extra != "dev")]
    declared = {project_name(requirement) for needs in groups for requirement in needs}
    providers = packages_distributions()
    undeclared = {
        f"{in_tree(path)}: {top}"
        for path in modules(*CODE)
        for top in {name.partition(".")[0] for name in imports(path)} - {"crosslens", "__future__"}
        if top not in sys.stdlib_module_names
        and not declared & {project_name(name) for name in providers.get(top, [top])}
    }
    assert not undeclared, f"add to the dependencies in pyproject.toml: {sorted(undeclared)}"


# What it declares


def test_the_installed_entry_points_are_those_of_the_tree() -> None:
    installed = {entry.name: entry.value for entry in entry_points(group="crosslens.adapters")}
    assert installed == BACKENDS, "installed from another pyproject.toml: run make setup"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_resolves_to_an_inspector(name: str) -> None:
    try:
        found = load_backend(name)
    except BackendNotInstalledError as error:
        if project_name(name) in re.split(r"[\[\],]", EXTRAS["all"][0]):
            raise  # make installs these
        pytest.skip(str(error))
    assert isinstance(found, type)
    assert issubclass(found, Inspector)


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"hooks"}))
def test_a_backend_has_its_extra(name: str) -> None:
    assert EXTRAS.get(project_name(name)), f"no extra {project_name(name)!r}, which the error for {name!r} names"


def test_the_constraints_pin_every_requirement() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {project_name(name) for name in pins}
    wanted = {
        project_name(requirement) for needs in [PROJECT["dependencies"], *EXTRAS.values()] for requirement in needs
    }
    assert wanted - {"crosslens"} <= pinned
    assert f"TORCH := torch=={pins['torch']}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


# What it ships


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy: a build writes into its source tree, and ships what an earlier one left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in CODE:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("crosslens-*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_tree_and_no_other(wheel: Path) -> None:
    tree = {
        in_tree(path)
        for folder in CODE
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        shipped = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.removeprefix("crosslens/") for name in shipped} == tree
    assert "crosslens/__init__.py" not in shipped


def test_every_package_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {name.rpartition("/")[0] for name in names if name.endswith("/__init__.py")}
    assert {f"crosslens/{folder}" for folder in CODE} <= packages
    assert {f"{package}/py.typed" for package in packages} <= names


def test_the_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import crosslens.adapters as a, crosslens.tasks as t, crosslens.benchmarks as b;"
        "print(a.__file__, t.__file__, b.__file__, a.load_backend('hooks').__module__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *files, backend = done.stdout.splitlines()
    assert [Path(file) for file in files] == [site / "crosslens" / folder / "__init__.py" for folder in CODE]
    assert backend == "crosslens.adapters.hooks"


# What its files look like


@pytest.mark.parametrize("path", modules(*CODE), ids=in_tree)
def test_a_module_fits_in_one_reading(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{in_tree(path)} has {lines} lines: split it by its ideas (at most {MAX_LINES})"


def test_no_file_names_a_path_of_some_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: no list of the project's files")
    found = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), 1)
        found += [f"{name}:{number}" for number, line in lines if MACHINE_PATH.search(line)]
    assert not found


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("in /" + "home/ann/x", True),
        ("'/" + "tmp/x'", True),
        ("https://a.org/home/x", False),
        ("a/opt/b", False),
    ],
)
def test_a_machine_path_is_told_from_others(text: str, named: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is named
