"""The correctness study: its design, its two references, its classes, and that it sees what is broken."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslens.adapters import InputError, Inspector, backends
from crosslens.adapters.hooks import HooksInspector
from crosslens.benchmarks.correctness import measure, oracle, own_forward
from crosslens.benchmarks.correctness.__main__ import main
from crosslens.benchmarks.correctness.asking import Distance, distance
from crosslens.benchmarks.correctness.design import DTYPES, EDITS, OWN, Cell, covering, design, dtypes_of, possible
from crosslens.benchmarks.correctness.judge import Verdict, floors, judge, unit
from crosslens.benchmarks.correctness.kept import Row, rows, text
from crosslens.benchmarks.correctness.measure import Reference, measured
from crosslens.benchmarks.correctness.running import run
from crosslens.benchmarks.correctness.scene import Outputs, Scene
from crosslens.benchmarks.correctness.table import latex, markdown

from .broken import BROKEN

WRONG = {"wrong", "silently wrong"}


# ---- the design


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_covering_design_has_every_combination_that_can_occur(data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.sampled_from(possible()), min_size=1, max_size=60, unique=True))
    strength = data.draw(st.sampled_from([2, 3]))
    taken = covering(cells, strength)
    assert _combinations(taken, strength) == _combinations(cells, strength)
    assert len(set(taken)) == len(taken) <= len(cells)


def _combinations(cells: Sequence[Cell], strength: int) -> list[set[Any]]:
    columns = list(zip(*map(astuple, cells), strict=True))
    return [set(zip(*chosen, strict=True)) for chosen in combinations(columns, strength)]


def test_designs_are_small_and_whole() -> None:
    assert _combinations(design("hooks"), 3) == _combinations(possible(), 3)
    assert _combinations(design("torchlens"), 2) == _combinations(possible(), 2)
    assert len(design("torchlens")) < len(design("hooks")) / 3 < len(possible()) / 50
    for backend in ("hooks", "torchlens"):
        for cell in design(backend):
            assert dtypes_of(backend, cell)[0] == "float64", "what proves the others"
    assert {dtype for cell in design("torchlens") for dtype in dtypes_of("torchlens", cell)} == set(DTYPES)


def test_ids_name_cells() -> None:
    for cell in possible()[::97]:
        assert Cell.of(cell.id) == cell
    for wrong, said in (
        ("llama", "a cell is family/site/operation"),
        ("llama/embed/capure/whole/eager/none/1", "its operation must be capture or replace or .*, not 'capure'"),
        ("gemma2/embed/capture/whole/sdpa/none/1", "its attention must be eager, not 'sdpa'"),
        ("llama/embed/capture/whole/eager/none/2", "its batch must be 1 or 3, not '2'"),
    ):
        with pytest.raises(InputError, match=said):
            Cell.of(wrong)


# ---- the references


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_two_references_agree(family: str) -> None:
    """The hand-written oracle, and the model's own forward without hooks, share no line of code."""
    asked = {(operation, site) for operation, sites in OWN.items() for site in sites}
    cells = [cell for cell in possible() if (cell.operation, cell.local) in asked and _told(cell)]
    cells = [c for c in cells if (c.family, c.padding, c.attention, c.batch) == (family, "left", "sdpa", 3)]
    assert len(cells) > 40
    for cell in cells[:: 1 if family == "llama" else 4]:
        scene, arithmetic = Scene(cell), "eager" if cell.local == "attn.pattern" else "sdpa"
        got, want = Reference(scene).answer(arithmetic), own_forward.answer(scene, "float64", arithmetic)
        found = distance(scene, got, {name: want[name] for name in want if name in got}, torch.float64)
        assert found.relative < 1e-12, f"{cell.id}: {found}"


def _told(cell: Cell) -> bool:
    """Whether the model's own forward tells it: changed weights are about whole rows, and a cut has other values."""
    if cell.local in ("attn.z", "mlp.post"):
        return cell.where != "positions"
    return not (cell.operation == "replace" and cell.local.startswith("resid"))


def test_a_cut_brings_the_other_run() -> None:
    """The oracle, given the value that the model's own forward has there in another run, gives that run's logits."""
    scene = Scene(Cell.of("llama/blocks.1.resid_post/replace/whole/sdpa/right/3"))
    value = own_forward.drawn(scene, "sdpa")
    edited = oracle.oracle_of("llama", "sdpa").run(scene.ids, scene.mask, [scene.edit(scene.canonical, value)])
    want = own_forward.answer(scene, "float64", "sdpa")
    assert distance(scene, {"logits": edited.logits}, {"logits": want["logits"]}).relative < 1e-12


def test_every_edit_has_an_effect() -> None:
    """A cell whose edit does nothing would be right for a backend that does nothing."""
    cells = [cell for cell in design("hooks") if cell.operation in EDITS]
    for cell in cells[::9]:
        scene, reference = Scene(cell), Reference(Scene(cell))
        arithmetic = reference.arithmetics[0]
        edited = {"logits": reference.answer(arithmetic)["logits"]}
        plain = Scene(Cell(cell.family, "logits", "capture", "whole", cell.attention, cell.padding, cell.batch))
        bare = {"logits": Reference(plain).answer(arithmetic)["logits"]}
        assert distance(scene, edited, bare).relative > 1e-3, cell.id


# ---- the classes

FLOORS = floors({"float32": 1e-6, "bfloat16": 2e-2})


def test_what_rounding_makes_in_float64_follows_from_float32() -> None:
    assert FLOORS["float64"] == pytest.approx(1e-6 * 2**-29)
    assert floors({"float32": 0.0, "bfloat16": 0.0})["float32"] == unit("float32") == 2**-24
    assert floors({"float32": 1e-6, "bfloat16": 0.0}, by_definition=True)["float64"] == 1e-6


@pytest.mark.parametrize(
    ("dtype", "error", "rerun", "name"),
    [
        ("float64", 0.0, None, "exact"),
        ("float64", 1e-14, None, "exact"),
        ("float64", 3e-8, None, "silently wrong"),  # float32 somewhere
        ("float32", 0.0, 1e-15, "exact"),
        ("float32", 2e-6, 1e-15, "noise"),
        ("float32", 2e-6, 3e-8, "noise"),  # that is no error of float32
        ("float32", 2e-6, 2e-6, "silently wrong"),  # it stays
        ("bfloat16", 2e-2, 1e-15, "noise"),
        ("bfloat16", 2e-2, 1e-3, "silently wrong"),  # hidden by rounding, and there
        ("bfloat16", 0.5, 1e-15, "silently wrong"),  # in this dtype alone
        ("float32", 1e-3, 1e-15, "silently wrong"),
    ],
)
def test_classes(dtype: str, error: float, rerun: float | None, name: str) -> None:
    before = None if rerun is None else judge("float64", {"eager": Distance(rerun)}, FLOORS, None)
    found = judge(dtype, {"eager": Distance(error)}, FLOORS, before)
    assert found.name == name
    assert judge(dtype, {"eager": Distance(error)}, FLOORS, before, "careful").name == name.removeprefix("silently ")
    assert bool(found.why) == (name == "silently wrong")


def test_another_arithmetic_is_noise_and_is_named() -> None:
    found = judge("float64", {"sdpa": Distance(2e-7), "eager": Distance(1e-15)}, FLOORS, None)
    assert (found.name, found.arithmetic) == ("noise", "eager")
    found = judge("float64", {"sdpa": Distance(2e-7), "eager": Distance(1e-9)}, FLOORS, None)
    assert found.name == "silently wrong"
    assert found.distance == Distance(1e-9)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 2), st.floats(0, 2), st.sampled_from(["float32", "bfloat16"]))
def test_noise_is_never_more_than_rounding_and_always_proven(error: float, in_float64: float, dtype: str) -> None:
    rerun = judge("float64", {"eager": Distance(in_float64)}, FLOORS, None)
    found = judge(dtype, {"eager": Distance(error)}, FLOORS, rerun)
    if found.name == "noise":
        assert error <= 16 * FLOORS[dtype]
        assert in_float64 <= FLOORS["float32"]


def test_distances_see_scale_and_what_is_not_finite() -> None:
    scene = Scene(Cell.of("llama/blocks.1.mlp.out/capture/whole/eager/left/3"))
    want = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = want.clone()
    got[~scene.mask] = math.nan  # padding means nothing
    assert distance(scene, {"site": got}, {"site": want}) == Distance()
    scaled = distance(scene, {"site": want * 1.01}, {"site": want})
    assert scaled.cosine == pytest.approx(1, abs=1e-12), "the cosine does not see it"
    assert scaled.scale == pytest.approx(1.01)
    assert scaled.relative == pytest.approx(0.01)
    got[scene.mask] = math.nan
    assert distance(scene, {"site": got}, {"site": want}).visible == "not finite"
    assert distance(scene, {"site": want[:2]}, {"site": want}).visible == "shape (2, 8, 32), must be (3, 8, 32)"
    assert distance(scene, {"site": want}, {"site": want}, torch.float32).visible.startswith("torch.float64, must be")
    assert distance(scene, {}, {"site": want}).visible == "no site"


# ---- what is broken is seen

CELLS = [
    Cell.of(name)
    for name in (
        "llama/blocks.1.attn.z/capture/whole/eager/none/3",
        "llama/blocks.1.resid_pre/capture/whole/sdpa/left/3",
        "llama/blocks.1.mlp.post/zero/units/sdpa/none/3",
        "llama/blocks.1.resid_mid/replace/whole/eager/none/3",
        "llama/blocks.1.resid_post/add/positions/sdpa/left/3",
        "llama/blocks.1.attn.z/gradients/whole/sdpa/none/3",
        "llama/blocks.1.resid_post/generate+add/positions/sdpa/none/3",
        "llama/blocks.1.attn.out/generate+add/whole/sdpa/none/3",
    )
]
OF_VALUES = ("right", "order-free", "batch-invariant", "positions")
NOT_OF_VALUES = {
    "RunsToTheEnd": "its values are right, and late",
    "Aliases": "its values are right until the model goes on to change them",
}


class _Remembered(Reference):
    """The same for every backend, so worked out once."""

    known: ClassVar[dict[Any, Any]] = {}

    def answer(self, arithmetic: str) -> Outputs:
        key = (self.scene.cell, arithmetic)
        if key not in self.known:
            self.known[key] = super().answer(arithmetic)
        found: Outputs = self.known[key]
        return found

    def floors(self, truth: Outputs) -> dict[str, float]:
        if self.scene.cell not in self.known:
            self.known[self.scene.cell] = super().floors(truth)
        found: dict[str, float] = self.known[self.scene.cell]
        return found


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Reference", _Remembered)


def _classes(backend: type[Inspector], cells: Sequence[Cell] = CELLS, dtypes: Sequence[str] = ("float64",)) -> set[str]:
    return {verdict.name for _, found in measured(backend, cells, lambda cell: dtypes) for verdict in found.values()}


@pytest.mark.parametrize(
    "broken", [each for group in BROKEN.values() for each in group], ids=lambda each: each.__name__
)
def test_broken_values_are_wrong_and_right_ones_are_not(broken: type[HooksInspector]) -> None:
    """Residue, company and refusals show in no value that a right question gets; the conformance kit sees those."""
    about_values = any(broken in BROKEN[promise] for promise in OF_VALUES) and broken.__name__ not in NOT_OF_VALUES
    classes = _classes(broken)
    assert bool(classes & WRONG) == about_values, classes
    assert about_values or classes <= {"exact", "noise"}


def test_the_sound_one_is_exact_or_noise_in_every_dtype() -> None:
    assert _classes(HooksInspector, dtypes=DTYPES) == {"exact", "noise"}


class _Changed(HooksInspector):
    """Passes every capture through `change`."""

    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _in_order(self, plan: Any, capture: Any) -> dict[str, Any]:
        return {name: self.change(tensor) for name, tensor in super()._in_order(plan, capture).items()}


class ScaledByALittle(_Changed):
    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 1.001


class ThroughFloat32(_Changed):
    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().to(tensor.dtype)


class OneRoundingMoreInFloat32(_Changed):
    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * (1 + 2**-23) if tensor.dtype == torch.float32 else tensor


class InBfloat16Alone(_Changed):
    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flip(-1) if tensor.dtype == torch.bfloat16 else tensor


class Float32ComesBack(_Changed):
    def change(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float()


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (ScaledByALittle, ("silently wrong", "silently wrong", "silently wrong")),
        (ThroughFloat32, ("silently wrong", "noise", "noise")),
        (OneRoundingMoreInFloat32, ("exact", "noise", "noise")),
        (InBfloat16Alone, ("exact", "noise", "silently wrong")),
        (Float32ComesBack, ("wrong", "noise", "wrong")),
    ],
)
def test_errors_of_scale_and_of_precision(broken: type[HooksInspector], names: tuple[str, ...]) -> None:
    ((_, found),) = measured(broken, CELLS[:1])
    assert tuple(found[dtype].name for dtype in DTYPES) == names
    if broken is ScaledByALittle:
        far = found["bfloat16"].distance
        assert far is not None
        assert far.cosine > 0.999, "which is what hides it"
        assert "in float64 0.001 is left of it" in found["bfloat16"].why
        assert found["float64"].distance is not None
        assert found["float64"].distance.scale == pytest.approx(1.001)


def test_other_families_are_held_to_their_own_forward() -> None:
    cells = [cell for cell in design("hooks") if cell.family in ("qwen3", "gemma2") and cell.operation == "scale"][:6]
    assert _classes(HooksInspector, cells, DTYPES) == {"exact", "noise"}
    assert _classes(ScaledByALittle, [cell for cell in cells if cell.local in ("embed", "final_norm")]) & WRONG


# ---- processes

JOBS = [(cell, ("float64",)) for cell in CELLS[:4]]


_FAKE = """
import json, os, sys, time
job = json.load(sys.stdin)
ids = [name for name, _ in job["cells"]]
right = {"float64": {"name": "exact", "distance": None}}

def tell(line):
    print(json.dumps(line), flush=True)
"""


def _fake(code: str) -> list[str]:
    return [sys.executable, "-c", _FAKE + code]


def test_a_process_that_dies_loses_one_cell() -> None:
    about: dict[str, Any] = {}
    code = f"""
tell({{"library": "torch", "version": "1", "missing": None}})
for name in ids:
    if name == {CELLS[1].id!r}:
        print("gone", file=sys.stderr, flush=True)
        os.abort()
    tell({{"cell": name, "verdicts": right}})
"""
    found = [row for each in run("hooks", JOBS, about, command=_fake(code)) for row in each]
    assert [row.cell for row in found] == CELLS[:4]
    assert [row.verdict.name for row in found] == ["exact", "error", "exact", "exact"]
    assert found[1].verdict.why == "the process ended with -6: gone"
    assert about == {"library": "torch", "version": "1", "missing": None}


def test_a_process_that_hangs_is_ended_and_always_dying_ends_it_all() -> None:
    found = [row for each in run("hooks", JOBS[:1], {}, command=_fake("time.sleep(60)"), seconds=0.5) for row in each]
    assert found[0].verdict.why == "the process was silent for 0.5 s and was ended"
    jobs = [(cell, ("float64",)) for cell in possible()[:8]]
    found = [row for each in run("hooks", jobs, {}, command=_fake("sys.exit(3)")) for row in each]
    assert [row.verdict.why[:9] for row in found] == ["the proce"] * 5 + ["not run: "] * 3


def test_a_missing_library_is_told() -> None:
    about: dict[str, Any] = {}
    code = "tell({'library': None, 'version': None, 'missing': 'backend needs it'})"
    assert list(run("hooks", JOBS, about, command=_fake(code))) == []
    assert about["missing"] == "backend needs it"


# ---- what is kept, and its pages


def _kept() -> dict[str, Any]:
    inf = math.inf
    found = [
        Row("hooks", CELLS[0], "float64", Verdict("exact", Distance(1e-15, 2e-15, 1.0, 1.0, "site"), 1e-16)),
        Row("hooks", CELLS[0], "float32", Verdict("noise", Distance(1e-6, 2e-6, 1.0, 1.000001, "site"), 1e-7)),
        Row("hooks", CELLS[1], "float64", Verdict("noise", Distance(1e-15, 1e-15), 1e-16, "eager")),
        Row(
            "other", CELLS[0], "float64", Verdict("refused", why="backend 'other' does not support x at 'y' (never): z")
        ),
        Row("other", CELLS[1], "float64", Verdict("wrong", Distance(inf, inf, 0, 0, "site"), 1e-16, why="site: a | b")),
        Row("other", CELLS[2], "float64", Verdict("error", why="ValueError: no")),
    ]
    about = {
        "hooks": {"library": "torch", "version": "2", "missing": None, "strength": 3},
        "other": {"library": "o", "version": "1", "missing": None, "strength": 2},
        "gone": {"library": None, "version": None, "missing": "not installed", "strength": 3},
    }
    kept: dict[str, Any] = json.loads(text(found, {"python": "3"}, (100, 300), about))
    assert list(rows(kept)) == found, "nothing is lost"
    return kept


def test_the_page_says_what_is_kept() -> None:
    page = markdown(_kept())
    assert "| `hooks` | torch 2 | 2 | 3 | 1 | 2 | 0 | 0 | 0 | 0 | 1.0e-15 | 1.0e-06 |  | 1.0e+09 |" in page
    assert "- `hooks`: 1 of 2 float64 answers are those of eager attention" in page
    assert f"| `other` | `{CELLS[1].id}` | float64 | wrong | inf | inf | 0 | 0 | site: a \\| b |" in page
    assert "- `other`, 1: backend 'other' does not support x (never): z" in page
    assert "| `gone` | not installed |" in page
    assert "| `attn.z` | =1 ~1 | r1 |" in page
    assert markdown(_kept()) == page
    with pytest.raises(InputError, match="schema 0"):
        markdown(_kept() | {"schema": 0})


def test_the_table_fits_a_column_in_latex(tmp_path: Path) -> None:
    table = latex(_kept())
    assert r"hooks & 1 & 2 & 0 & 0 & 1e$-15$ & 1e$-6$ & -- \\" in table
    if shutil.which("pdflatex") is None:  # as for the other tables: CI installs it, and says when it could not
        return
    long = table.replace("hooks &", r"transformer\_lens &").replace("& 1 & 2 & 0 & 0 &", "& 1234 & 2345 & 345 & 12 &")
    source = (
        r"\documentclass[10pt,twocolumn]{article}\usepackage{booktabs,times}"
        r"\usepackage[letterpaper,margin=0.75in,columnsep=0.25in]{geometry}\begin{document}"
        rf"\newsavebox\tab\sbox\tab{{{long}}}\typeout{{WIDTH \the\wd\tab\space of \the\columnwidth}}\usebox\tab"
        r"\end{document}"
    )
    (tmp_path / "page.tex").write_text(source)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("WIDTH"))
    _, width, _, column = line.split()
    assert float(width.removesuffix("pt")) <= float(column.removesuffix("pt")), line


# ---- the command


def test_the_command_refuses_before_it_runs(tmp_path: Path) -> None:
    for arguments, said in (
        ({"backend": ["nothing"]}, "there is no backend 'nothing'; there are hooks"),
        ({"only": ["llama"]}, "a cell is family/site"),
        ({"out": tmp_path / "page.txt"}, "must be a .md file in a folder that exists"),
        ({"out": tmp_path / "no" / "page.md"}, "must be a .md file in a folder that exists"),
    ):
        with pytest.raises(InputError, match=said):
            main(**{"backend": None, "only": None, "out": None, **arguments})
    (tmp_path / "page.json").write_text("{")
    with pytest.raises(InputError, match=r"page.json cannot be read, so nothing can be added"):
        main(["hooks"], None, tmp_path / "page.md")


def test_one_cell_is_shown_in_every_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    main(["hooks"], [CELLS[0].id], None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines[::2]] == ["exact", "noise", "noise"]
    assert "cosine" in lines[1]


def test_a_run_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pretend(jobs: Any, found: list[Row], about: dict[str, Any]) -> Iterator[str]:
        for name in jobs:
            asked.append(name)
            if len(asked) == 3:
                raise KeyboardInterrupt
            found.append(Row(name, CELLS[0], "float64", Verdict("exact", Distance(1e-15, 2e-15), 1e-16)))
            about[name] = {"library": "torch", "version": "2", "missing": None, "strength": 3}
            yield name

    monkeypatch.setattr("crosslens.benchmarks.correctness.__main__.measure", pretend)
    page = tmp_path / "page.md"
    with pytest.raises(KeyboardInterrupt):
        main(None, None, page)
    assert not page.exists(), "a page says that everything was measured"
    main(None, None, page)
    assert asked == [*backends()[:3], *backends()[2:]], "a backend that was done is not asked again"
    kept = json.loads(page.with_suffix(".json").read_text())
    assert [row.backend for row in rows(kept)] == backends()
    assert page.read_text() == markdown(kept)
