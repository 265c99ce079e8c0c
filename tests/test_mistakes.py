"""The mistakes: the judge on made-up outcomes, the list, and that crosslens refuses each or does what was meant."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from crosslens.benchmarks.mistakes import one
from crosslens.benchmarks.mistakes.__main__ import of
from crosslens.benchmarks.mistakes.catalogue import BY_NAME, MISTAKES, Mistake
from crosslens.benchmarks.mistakes.judge import Material, Outcome, difference, judge
from crosslens.benchmarks.mistakes.programs import LIBRARIES, Programs, programs, states
from crosslens.benchmarks.mistakes.scene import Scene
from crosslens.benchmarks.mistakes.table import cell, counts, table

from .test_runner import RUN

KEPT = json.loads((RUN / "studies" / "mistakes.json").read_text(encoding="utf-8"))
OUTCOMES = [Outcome(**each) for each in KEPT["outcomes"]]
MADE_UP = Mistake("made_up", "writes spam", "eggs", None, r"\bspam\b")
MEANT = torch.tensor([[1.0, -4.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


# ---- the judge


@pytest.mark.parametrize(
    ("material", "kind", "damage"),
    [
        (Material(error="KeyError: no Spam here", raised_in="/x/library/site.py"), "refused", None),
        (Material(error="KeyError: something else", raised_in="/x/library/site.py"), "error", None),
        (Material(error="KeyError: spam", raised_in="/x/torch/nn/modules/linear.py"), "error", None),
        (Material(error="KeyError: spam", raised_in="/x/torch/nn/functional.py"), "error", None),
        (Material(error="AttributeError: spam", raised_in="/x/torch/nn/modules/module.py"), "refused", None),
        (Material(error="KeyError: spam", raised_in="/x/transformers/models/llama/modeling_llama.py"), "error", None),
        (Material(error="KeyError: spam", raised_in="/x/transformers/generation/utils.py"), "refused", None),
        (Material(error="KeyError: ham", raised_in="/x/a.py", culprit="ham"), "refused", None),
        (Material(error="KeyError: spam", raised_in="/x/a.py", culprit="ham"), "error", None),
        (Material(value=MEANT.float()), "right", 0.0),
        (Material(value=MEANT + 1e-5), "right", 0.0),
        (Material(value=MEANT + 1), "silent", 0.25),
        (Material(value=MEANT + 1, said="a\nUserWarning: what is spam?"), "warned", 0.25),
        (Material(value=MEANT + 1, said="UserWarning: spamming"), "silent", 0.25),
        (Material(value=MEANT, said="UserWarning: spam"), "right", 0.0),
        (Material(value=MEANT + 1, documented="gives one more"), "right", 0.25),
        (Material(value=MEANT.T), "silent", None),
        (Material(value=MEANT * torch.nan), "silent", None),
        (Material(value=None), "silent", None),
        (Material(absent="it does nothing of the kind"), "n/a", None),
        (Material(impossible="there is no such call"), "right", None),
    ],
)
def test_the_judge_decides_by_rule(material: Material, kind: str, damage: float | None) -> None:
    outcome = judge("library", MADE_UP, MEANT, material)
    assert (outcome.kind, outcome.damage) == (kind, damage)
    assert (outcome.library, outcome.mistake) == ("library", "made_up")


def test_the_judge_says_what_no_number_does() -> None:
    assert difference(MEANT[0], MEANT) == (None, "shape (2,) for (1, 2)")
    assert difference(None, MEANT) == (None, "the user gets NoneType")
    assert difference(MEANT, None) == (None, "a result where none could be right")
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == (0.25, "")
    late = judge("library", MADE_UP, MEANT, Material(error="E: spam", raised_in="/torch/nn/functional.py"))
    assert "arithmetic" in late.note
    long = judge("library", MADE_UP, MEANT, Material(error=f"E: spam at 0x7f3a /x/y/site.py\n{'and ' * 99}"))
    assert long.says.startswith("E: spam at 0x... site.py and ")
    assert len(long.says) == 200


def test_a_wrong_result_where_none_could_be_right_is_silent() -> None:
    assert judge("library", MADE_UP, None, Material(value=MEANT)).kind == "silent"


# ---- the list


def test_the_list_is_long_enough_and_names_nothing_twice() -> None:
    assert len(BY_NAME) == len(MISTAKES) >= 24
    assert len({mistake.does for mistake in MISTAKES}) == len(MISTAKES)


def test_every_library_says_something_about_every_mistake() -> None:
    for library in LIBRARIES:
        held = programs(library)
        for name in BY_NAME:
            reason = held.reason(name)
            assert bool(reason) == (name not in held.made and name not in held.impossible), (library, name)
        named = {*held.impossible, *held.culprits, *held.documented, *held.notes, *held.meant, *held.absent} - {""}
        assert named <= set(BY_NAME), library
        assert not set(held.made) & {*held.impossible, *held.absent}, library
        assert {*held.culprits, *held.documented, *held.notes, *held.meant} <= set(held.made), library


def test_a_mistake_that_does_nothing_would_be_seen(scene: Scene) -> None:
    """What was meant differs from the plain model's result by more than a rounding, wherever something is edited."""
    plain = {
        (1, 7, 311): [scene.truth.run(scene.ids).logits, scene.truth_gpt2.run(scene.ids).logits],
        (1, 4): [scene.truth.generate(scene.ids, 4)[0][:, -4:]],
    }
    same = {"two_wrappers", "training_left_on", "exception_inside_edit"}  # where the plain result is what was meant
    checked = 0
    for mistake in MISTAKES:
        meant = None if mistake.result is None else mistake.result(scene)
        if meant is None or mistake.name in same:
            continue
        for unedited in plain.get(tuple(meant.shape), []):
            damage, _ = difference(unedited, meant)
            assert damage is not None
            assert damage > 0.01, mistake.name
            checked += 1
    assert checked > 30


def test_nothing_is_imported_with_the_package() -> None:
    code = "import sys, crosslens.benchmarks.mistakes.programs as p; [p.programs(n) for n in p.LIBRARIES]; "
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & {
        "transformer_lens",
        "nnsight",
        "pyvene",
        "torchlens",
        "tdhook",
        "captum",
        "inseq",
        "jax",
        "comgra",
    }


def test_documentation_is_quoted_from_docstrings() -> None:
    for library in ("hooks", "crosslens"):
        for path, words in programs(library).documented.values():
            assert states(path, words), (library, path)
    assert not states("torch.nn.Module.train", "dropout is switched off by itself")


# ---- processes


def _held(program: Any, **more: Any) -> Programs:
    return Programs("made up", "1", {"negative_layer": program}, **more)


def _apart(program: Any, scene: Scene, **more: Any) -> Outcome:
    return one._apart(_held(program, **more), BY_NAME["negative_layer"], MEANT, scene)


def test_a_crash_and_a_hang_are_outcomes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = _apart(lambda s: os._exit(7), scene)
    assert (crashed.kind, crashed.says) == ("error", "the process died: exit status 7")
    killed = _apart(lambda s: os.kill(os.getpid(), signal.SIGKILL), scene)
    assert (killed.kind, killed.says) == ("error", "the process died: exit status -9")
    monkeypatch.setattr(one, "SECONDS", 0.5)
    started = time.monotonic()
    hung = _apart(lambda s: time.sleep(60), scene)
    assert (hung.kind, hung.says) == ("error", "the process died: it did not end in 0.5 seconds")
    assert time.monotonic() - started < 20


def test_what_reaches_the_console_is_heard_and_not_printed(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    def speaking(_: Scene) -> Tensor:
        os.write(2, b"layer -1 is not what you think\n")
        return MEANT + 1

    found = _apart(speaking, scene)
    assert (found.kind, found.says) == ("warned", "layer -1 is not what you think")
    assert "layer -1" not in "".join(capfd.readouterr())


def test_a_bug_in_what_was_meant_is_no_outcome(scene: Scene) -> None:
    def broken(_: Scene) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match=r"made up, negative_layer: (.|\n)*ZeroDivisionError"):
        _apart(lambda s: MEANT, scene, meant={"negative_layer": broken})


def test_a_library_is_opened_in_each_process_alone(scene: Scene) -> None:
    """What one program leaves behind does not reach the next."""

    def leaving(_: Scene) -> Tensor:
        torch.set_default_dtype(torch.float64)
        scene.ids.zero_()
        return MEANT

    before = scene.ids.clone()
    assert _apart(leaving, scene).kind == "right"
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(scene.ids, before)


# ---- outcomes


def test_what_is_kept_is_whole_and_rendered() -> None:
    assert list(KEPT["versions"]) == list(LIBRARIES)
    assert Counter((each.library, each.mistake) for each in OUTCOMES) == Counter(
        (library, name) for library in LIBRARIES for name in BY_NAME
    )
    assert (RUN / "studies" / "mistakes.md").read_text(encoding="utf-8") == table(OUTCOMES, KEPT["versions"])


def test_kept_rows_of_crosslens_are_refused_or_right() -> None:
    rows = [each for each in OUTCOMES if each.library.startswith("crosslens")]
    assert len(rows) == 3 * len(MISTAKES)
    assert {each.kind for each in rows} == {"refused", "right"}


def test_the_table_shows_damage_and_documentation() -> None:
    silent = Outcome("a", MISTAKES[0].name, "silent", 0.4321)
    assert cell(silent) == "**silent** 0.43"
    assert cell(dataclasses.replace(silent, damage=None, note="shape (1,) for (2,)")) == "**silent** shape"
    assert cell(dataclasses.replace(silent, kind="right", note="documented: 'x'; ")) == "right *"
    assert counts([silent, silent])["a"]["silent"] == 2
    text = table([silent], {"a": "1.0"})
    assert "| a | 1.0 | 0 | 0 | 0 | 1 | 0 | 0 |" in text
    assert f"| {MISTAKES[0].name.replace('_', ' ')} | **silent** 0.43 |" in text


@pytest.mark.parametrize("library", ["crosslens", "hooks", "transformer_lens", "nnsight", "pyvene"])
def test_outcomes_are_what_is_kept(library: str) -> None:
    """A new version that mends, or breaks, something makes this fail: then run the module and commit what it writes."""
    if programs(library).version != KEPT["versions"][library]:
        pytest.skip(f"{library} is another version than the one that results are kept of")
    found = {each.mistake: each for each in of(library)}
    kept = {each.mistake: each for each in OUTCOMES if each.library == library}
    assert {name: each.kind for name, each in found.items()} == {name: each.kind for name, each in kept.items()}
    for name, each in found.items():
        if each.kind == "silent" and each.damage is not None:
            assert each.damage == pytest.approx(kept[name].damage, rel=0.02), name
    if library == "crosslens":
        assert {each.kind for each in found.values()} == {"refused", "right"}


def test_a_library_that_there_is_not_is_refused_before_any_work() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crosslens.benchmarks.mistakes", "--library", "nsight"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no library 'nsight'; there are" in done.stderr
    assert "nnsight" in done.stderr
