"""Idioms: each program does what its header says, and its measures are those counted by hand."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters.errors import InputError
from crosslens.benchmarks.idioms import __main__ as command
from crosslens.benchmarks.idioms import catalogue, measure, report, running
from crosslens.benchmarks.idioms.__main__ import main, table
from crosslens.benchmarks.idioms.catalogue import LIBRARIES, entries, read_header
from crosslens.benchmarks.idioms.operations import OPERATIONS, TOLERANCE, Case, Work, families, judge
from crosslens.benchmarks.idioms.worker import run_entry

from .test_runner import RUN

KEPT = RUN / "studies" / "idioms.json"
HERE = ("hooks", "crosslens", "captum", "tdhook", "inseq", "comgra")
"""Libraries that leave the process as it is: their programs run in this one. The others have processes of their own."""
ALONE: dict[str, tuple[str, ...]] = {
    "nnsight": (),
    "pyvene": (),
    "transformer_lens": ("capture_residuals", "patch_head", "any_module", "record_steps"),
    "torchlens": ("stop_early",),
    "penzai": ("zero_neuron",),
}
"""Only these operations, where they take long, empty for all; to make the kept table all are run."""
PROGRAM = '''"""Do something, with lib.

Documentation: its README.
Serves: llama
Wrong (llama): it is a test.
"""

from __future__ import annotations

from typing import Any

import lib.deep as ld
from lib import Tool
from torch import Tensor


def run(model: Any, ids: Tensor) -> Tensor:
    """A docstring."""
    tool = Tool(model, size=3)  # names: deep, lib, Tool, size
    # --- operation
    kept: list[Tensor] = []
    for block in model.layers:  # layers is a module's name, of no library's object
        with tool.watch(block.self_attn) as seen:  # names: watch
            seen.ready(lambda x: kept.append(x.clone()))  # names: ready
    return ld.join(kept, f"how_to {ids}", mode="wide")  # names: join, mode, how_to, wide
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def kept() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def named(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["library"], row["operation"], row["family"]


# ---- measures


def test_a_program_is_measured_as_counted_by_hand(program: Path) -> None:
    found = measure.measure(program, ["lib"], ["layers", "self_attn", "q_proj"])
    assert found.setup_lines == 3, "two imports of the library and one assignment; those for annotations are none"
    assert found.operation_lines == 5, "an assignment, for, with, an expression, return"
    assert found.nesting == 3, "for, with, lambda"
    assert set(found.names) == {
        "lib", "deep", "Tool", "size", "watch", "ready", "join", "mode", "how_to", "wide"
    }  # fmt: skip
    assert found.architecture == ("layers", "self_attn")
    setup = "import lib . deep as ld from lib import Tool tool = Tool ( model , size = 3 )"
    assert found.setup_tokens == len(setup.split())
    operation = (
        "kept = [ ] for block in model . layers : with tool . watch ( block . self_attn ) as seen : "
        "seen . ready ( lambda x : kept . append ( x . clone ( ) ) ) "
        "return ld . join ( kept , 'how_to_{ids}' , mode = 'wide' )"
    )
    assert found.operation_tokens == len(operation.split())
    assert found.lines == 8
    assert found.tokens == len(f"{setup} {operation}".split())


def test_measures_do_not_see_layout_comments_docstrings_or_annotations(program: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    text = PROGRAM.replace("size=3)  #", "\n        size=3,\n    )  # more of a comment;")
    text = text.replace("kept: list[Tensor] = []", "kept = []").replace("-> Tensor:", ':\n    "other"')
    other.write_text(text.replace('    """A docstring."""\n', ""))
    first, second = (measure.measure(path, ["lib"]) for path in (program, other))
    assert first == second


def test_what_a_program_imports_from_beside_it_is_its_set_up(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text('"""Doc."""\n\nimport lib\n\n\ndef made(x):\n    return lib.wrap(x)\n')
    path = tmp_path / "program.py"
    path.write_text("from .helper import made\n\n\ndef run(model):\n    # --- operation\n    return made(model).go()\n")
    found = measure.measure(path, ["lib"])
    assert (found.setup_lines, found.operation_lines) == (3, 1)
    assert set(found.names) == {"lib", "wrap", "go"}, "what a function makes of the library is the library's"


def test_words_of_texts_count_wherever_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        "import lib\n\n\ndef run(layer, free):\n    # --- operation\n    unused = 'unused'\n"
        "    name = f'blocks.{layer}.hook_z'\n    sites = [{'layer': layer, 'site': name}]\n"
        "    free('elsewhere')\n    return lib.go(sites)\n"
    )
    assert set(measure.measure(path, ["lib"]).names) == {"lib", "go", "layer", "site", "blocks", "hook_z"}


def test_a_change_inside_a_text_is_a_change(tmp_path: Path) -> None:
    texts = []
    for name in ("model.layers", "transformer.h"):
        path = tmp_path / f"{name}.py"
        path.write_text(f"def run(lib, layer):\n    # --- operation\n    return lib.go(f'{name}.{{layer}}', 'x')\n")
        texts.append(measure.pieces(measure.read(path).statements))
    assert measure.distance(*texts) == 2, "model and layers, as attributes would"


def test_hooks_are_measured_by_the_names_of_modules_and_gradients(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        "import torch\n\n\ndef run(model, x):\n    # --- operation\n"
        "    handle = model.layer.register_forward_hook(print)\n    handle.remove()\n"
        "    with torch.no_grad():\n        return torch.stack([x.clone()])\n"
    )
    assert measure.measure(path, ["torch"]).names == ("no_grad", "register_forward_hook", "remove")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("def run(x):\n    return x\n", "no marker"),
        ("def go(x):\n    # --- operation\n    return x\n", "no function run"),
        ("# --- operation\ndef run(x):\n    return x\n", "a marker outside it"),
    ],
)
def test_a_program_without_its_parts_is_refused(tmp_path: Path, text: str, missing: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(text)
    with pytest.raises(InputError, match="one function run"):
        measure.read(path)


TOKENS = st.lists(st.sampled_from("abc"), max_size=8)


def test_distance_of_two_known_words() -> None:
    assert measure.distance("kitten", "sitting") == 3
    assert measure.distance("", "abc") == 3


@given(TOKENS, TOKENS, TOKENS)
def test_distance_is_a_metric(a: list[str], b: list[str], c: list[str]) -> None:
    d = measure.distance
    assert d(a, b) == d(b, a)
    assert (d(a, b) == 0) == (a == b)
    assert d(a, c) <= d(a, b) + d(b, c)
    assert abs(len(a) - len(b)) <= d(a, b) <= max(len(a), len(b))


@given(TOKENS, st.data())
def test_one_change_is_at_distance_one(a: list[str], data: Any) -> None:
    place = data.draw(st.integers(0, len(a)))
    assert measure.distance(a, [*a[:place], "new", *a[place:]]) == 1


# ---- operations and what judges them


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_is_right_and_nothing_done_is_wrong(operation: str, tmp_path: Path) -> None:
    for family in families(operation):
        (tmp_path / family).mkdir()
        case = OPERATIONS[operation].prepare(family, tmp_path / family)
        assert judge(case, case.reference.clone()).outcome == "right"
        nothing = judge(case, case.nothing.clone())
        assert nothing.outcome == "wrong"
        assert nothing.error is not None
        assert nothing.error > 100 * TOLERANCE


def test_verdicts() -> None:
    reference = torch.tensor([[1.0, -100.0], [3.0, 4.0]], dtype=torch.float64)
    case = Case({}, reference, torch.zeros(2, 2))
    assert judge(case, "text").note == "gave a str, not a tensor"
    assert "shape (2,)" in judge(case, reference[0]).note
    off = reference.clone()
    off[0, 0] += 0.005  # 5e-5 of the largest value, 5e-3 of its own
    assert judge(case, off).outcome == "right"
    assert judge(Case({}, reference, torch.zeros(2, 2), each=True), off).outcome == "wrong"
    assert judge(case, torch.full_like(reference, torch.nan)).outcome == "wrong"
    padded = Case({}, reference, torch.zeros(2, 2), where=torch.tensor([False, True]))
    assert judge(padded, torch.tensor([[0.0, 0.0], [3.0, 4.0]])).outcome == "right"
    tokens = Case({}, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 4]]))
    assert judge(tokens, torch.tensor([[1, 0, 0]])).error == 2
    limited = Case({}, reference, torch.zeros(2, 2), most_work=10)
    assert [judge(limited, reference, work).outcome for work in (10, 11)] == ["right", "wrong"]


def test_work_counts_what_runs_inside() -> None:
    with Work() as work:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert work.flops == 2 * 3 * 5 * 7


# ---- the catalogue


def test_headers(program: Path) -> None:
    header = read_header(program)
    assert header.question == "Do something, with lib."
    assert (header.documentation, header.serves) == ("its README.", ("llama",))
    assert header.wrong == {"llama": "it is a test."}
    assert not header.raises
    program.write_text('"""Something.\n\nServes: llama\n"""\n')
    with pytest.raises(InputError, match="Documentation"):
        read_header(program)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_operation_has_a_program_or_a_reason(library: str) -> None:
    found = entries(library)
    assert [(each.operation, each.family) for each in found] == [
        (name, family) for name in OPERATIONS for family in families(name)
    ]
    assert all(each.reason for each in found if each.stated != "right"), "what is not right says why"


def test_a_program_and_a_reason_for_one_thing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {**catalogue.IMPOSSIBLE, ("hooks", "zero_neuron", ""): "no"}
    monkeypatch.setattr(catalogue, "IMPOSSIBLE", both)
    with pytest.raises(InputError, match="one of the two"):
        entries("hooks")


PROGRAMS = [path for name in LIBRARIES for path in sorted((catalogue.HERE / name).glob("*.py")) if path.stem[0] != "_"]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_program_uses_its_own_library(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    roots |= {
        n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and not n.level
    }
    library = path.parent.name
    others = {module for name, modules in LIBRARIES.items() if name != library for module in modules} - {"torch"}
    assert not roots & (others - set(LIBRARIES[library]))
    words = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    if library not in ("hooks", "comgra"):  # comgra documents no other way into a model of others; its headers say so
        assert not {word for word in words if word.startswith("register_") and "hook" in word}
    assert "model_type" not in words, "a text that serves both families does not ask which it is"


def test_importing_the_package_imports_no_library() -> None:
    libraries = sorted({module for modules in LIBRARIES.values() for module in modules} - {"torch", "crosslens"})
    code = (
        "import sys; import crosslens.benchmarks.idioms, crosslens.benchmarks.idioms.running, "
        f"crosslens.benchmarks.idioms.report; print([name for name in {libraries} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


# ---- running


def outcomes(found: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    return {named(row): row["outcome"] for row in found}


def skip_without(library: str) -> None:
    if any(find_spec(module) is None for module in LIBRARIES[library]):
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("library", HERE)
def test_each_program_comes_to_what_its_header_says(library: str) -> None:
    skip_without(library)
    before = outcomes(kept())
    for each in entries(library):
        row = run_entry(each)
        assert row["outcome"] == each.stated, (each.operation, each.family, row)
        assert row["outcome"] == before[library, each.operation, each.family]


@pytest.mark.parametrize("library", ALONE)
def test_each_program_comes_to_what_its_header_says_in_a_process_of_its_own(library: str) -> None:
    skip_without(library)
    found = running.rows(library, ALONE[library])
    assert found
    assert outcomes(found) == {named(row): row["stated"] for row in found}, [row["note"] for row in found]
    assert outcomes(found).items() <= outcomes(kept()).items()


def test_a_program_that_kills_its_process_is_a_row_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho going >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(dying))
    seen: list[dict[str, Any]] = []
    found = running.rows("hooks", ["zero_neuron"], seen.append)
    assert [row["family"] for row in found] == ["llama", "gpt2"]
    assert {row["outcome"] for row in found} == {"raises"}
    assert {row["note"] for row in found} == {"the process ended with status -9: going"}
    assert seen == found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"library": ["nope"]}, "no library 'nope'; there are hooks"),
        ({"operation": ["nope"]}, "no operation 'nope'; there are capture_residuals"),
        ({"out": Path("no", "table.md")}, r"must be a \.md file in a folder that exists"),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        main(**options)


@pytest.mark.parametrize(("outcome", "status"), [("right", 0), ("wrong", 1)])
def test_an_outcome_that_the_header_does_not_state_is_a_finding(
    outcome: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {**kept()[0], "outcome": outcome, "note": "off by one"}
    monkeypatch.setattr(command, "rows", lambda library, operations, progress: [row])
    path = tmp_path / "table.md"
    with pytest.raises(typer.Exit) as stopped:
        main(library=["hooks"], operation=[row["operation"]], out=path)
    assert stopped.value.exit_code == status
    said = " ".join(capsys.readouterr().err.split())
    assert ("capture_residuals llama: wrong, where its header says right. off by one" in said) == (status == 1)
    assert path.read_text() == report.markdown([row])
    assert json.loads(path.with_suffix(".json").read_text()) == [row]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "rows", lambda library, operations, progress: [kept()[0]])
    path = tmp_path / "table.md"
    path.write_text("before")
    (tmp_path / "table.json").mkdir()
    with pytest.raises(InputError, match="cannot be written, what was there stays"):
        main(library=["hooks"], out=path)
    assert path.read_text() == "before"
    assert not list(tmp_path.glob("*.part"))


# ---- what is kept


def test_the_kept_rows_are_of_these_programs() -> None:
    rows = kept()
    wanted = [each for library in LIBRARIES for each in entries(library)]
    assert [named(row) for row in rows] == [(each.library, each.operation, each.family) for each in wanted]
    for row, each in zip(rows, wanted, strict=True):
        assert row["outcome"] == each.stated
        now = running.described(each)
        assert {name: row[name] for name in now if name != "version"} == {
            name: value for name, value in now.items() if name != "version"
        }
        if row["outcome"] == "right":
            assert row["error"] <= TOLERANCE


def test_the_kept_table_is_what_the_rows_render_to() -> None:
    assert (RUN / "studies" / "idioms.md").read_text(encoding="utf-8") == report.markdown(kept())


def test_failures_show_in_the_table() -> None:
    rows = kept()
    text = report.markdown(rows)
    for row in rows:
        if row["outcome"] != "right":
            assert row["reason"].replace("|", "\\|") in text
    shown = table(rows)
    assert shown.row_count == len(OPERATIONS)
    good = {"setup_lines": 1, "operation_lines": 2, "distance": 3, "outcome": "right", "family": "llama"}
    assert report.cell([good, {**good, "family": "gpt2"}]) == "1+2 Δ3"
    assert report.cell([good, {"outcome": "raises", "family": "gpt2"}]) == "1+2, gpt2: fails"
    assert report.cell([{"outcome": "impossible", "family": each} for each in ("llama", "gpt2")]) == "—"
