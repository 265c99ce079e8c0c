"""Snapshots notice what is planted and nothing else; what is kept of the libraries is what comes out again."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crosslens.adapters import InputError
from crosslens.benchmarks.residue.__main__ import main, run
from crosslens.benchmarks.residue.behaviour import CountingHook, changed, outcomes, pickled
from crosslens.benchmarks.residue.process import LiveTensors, Names, Writes
from crosslens.benchmarks.residue.snapshot import Difference, differences, model_facts
from crosslens.benchmarks.residue.table import GROUPS, markdown
from crosslens.benchmarks.residue.uses import USES
from crosslens.benchmarks.residue.worker import facts, grouped, measure, prepared
from crosslens.tasks import load_model

from .test_runner import RUN

KEPT = RUN / "studies" / "residue.json"
IDS = torch.arange(3, 11)[None]
LAYER = "model.layers.1"


@pytest.fixture
def scene(tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path]:
    model, tokenizer = load_model("tiny-llama")
    prepared(model)
    folder = tmp_path / "seen"
    folder.mkdir()
    return model, tokenizer, folder


def test_nothing_happened_and_nothing_is_found(scene: Any) -> None:
    model, _, _ = scene
    names, tensors, before = Names.taken(), LiveTensors.taken(), facts(*scene)
    model(IDS)
    assert differences(before, facts(*scene)) == []
    assert names.changed() == []
    assert tensors.new(model) == (0, 0)


def set_attribute(owner: Callable[[Any], Any], name: str, value: Any) -> Callable[..., None]:
    return lambda model, tokenizer, folder: setattr(owner(model), name, value)


def layer(model: Any) -> Any:
    return model.get_submodule(LAYER)


def weight(model: Any) -> Any:
    return model.get_parameter(f"{LAYER}.mlp.up_proj.weight")


def nudge(model: Any, tokenizer: Any, folder: Path) -> None:
    with torch.no_grad():
        weight(model)[3, 5] += 1e-6


MODEL_CHANGES: dict[str, tuple[str, str, Callable[..., object]]] = {
    "hook": ("forward hooks", LAYER, lambda m, t, f: layer(m).register_forward_hook(print)),
    "pre-hook": ("forward pre-hooks", LAYER, lambda m, t, f: layer(m).register_forward_pre_hook(print)),
    "backward hook": ("backward hooks", LAYER, lambda m, t, f: layer(m).register_full_backward_hook(print)),
    "state-dict hook": (
        "state-dict hooks",
        LAYER,
        lambda m, t, f: layer(m).register_state_dict_post_hook(lambda *_: None),
    ),
    "removed hook": ("forward hooks", "model.norm", lambda m, t, f: m.model.norm._forward_hooks.clear()),
    "tensor hook": ("tensor hooks", f"{LAYER}.mlp.up_proj.weight", lambda m, t, f: weight(m).register_hook(print)),
    "mode": ("training", LAYER, set_attribute(layer, "training", False)),
    "forward": ("forward", LAYER, set_attribute(layer, "forward", print)),
    "attribute": ("attributes of modules", f"{LAYER}.note", set_attribute(layer, "note", 1)),
    "frozen": ("requires_grad", f"{LAYER}.mlp.up_proj.weight", lambda m, t, f: weight(m).requires_grad_(False)),
    "gradient": ("gradients", "lm_head.weight", lambda m, t, f: m.lm_head.weight.grad.add_(1)),
    "weight": ("weights", f"{LAYER}.mlp.up_proj.weight", nudge),
    "buffer": ("weights", "model.rotary_emb.inv_freq", lambda m, t, f: m.model.rotary_emb.inv_freq.mul_(2)),
    "setting": ("config", "use_cache", lambda m, t, f: setattr(m.config, "use_cache", False)),
    "attention": (
        "attention implementation",
        "config",
        lambda m, t, f: setattr(m.config, "_attn_implementation", "eager"),
    ),
    "module": ("modules replaced or added", f"{LAYER}.mlp", lambda m, t, f: setattr(layer(m), "mlp", nn.Identity())),
}


@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_a_change_of_the_model_is_noticed(name: str, scene: Any) -> None:
    kind, place, plant = MODEL_CHANGES[name]
    before = facts(*scene)
    plant(*scene)
    found = differences(before, facts(*scene))
    assert ("model", kind, place) in {(each.group, each.kind, each.place) for each in found}
    allowed = {kind, "state-dict keys", "modules replaced or added"} if name == "module" else {kind}
    assert {each.kind for each in found} <= allowed | ({"config"} if name == "attention" else set()), found


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("padding side", lambda t: setattr(t, "padding_side", "left")),
        ("truncation side", lambda t: setattr(t, "truncation_side", "left")),
        ("special tokens", lambda t: setattr(t, "unk_token", "<bos>")),
        ("inner state", lambda t: t.backend_tokenizer.enable_padding()),
        ("attributes", lambda t: setattr(t, "model_max_length", 7)),
    ],
)
def test_a_change_of_the_tokenizer_is_noticed(kind: str, plant: Callable[[Any], None], scene: Any) -> None:
    before = facts(*scene)
    plant(scene[1])
    found = differences(before, facts(*scene))
    assert kind in {each.kind for each in found}
    assert {each.group for each in found} == {"tokenizer"}


class Patch:
    """Something done to the process, and taken back."""

    def __init__(self, kind: str, do: Callable[[], object], undo: Callable[[], object]) -> None:
        self.kind, self.do, self.undo = kind, do, undo


STOP = threading.Event()
PROCESS_CHANGES = {
    "warning filter": Patch(
        "warnings filters", lambda: warnings.simplefilter("ignore"), lambda: warnings.filters.pop(0)
    ),
    "log level": Patch(
        "logging", lambda: logging.getLogger("torch").setLevel(3), lambda: logging.getLogger("torch").setLevel(0)
    ),
    "torch seed": Patch("random state", lambda: torch.rand(1), lambda: None),
    "python seed": Patch("random state", lambda: random.random(), lambda: None),
    "numpy seed": Patch("random state", lambda: np.random.rand(), lambda: None),
    "dtype": Patch(
        "torch settings",
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "grad mode": Patch(
        "torch settings", lambda: torch._C._set_grad_enabled(False), lambda: torch._C._set_grad_enabled(True)
    ),
    "variable": Patch("environment", lambda: os.environ.update(LEFT="1"), lambda: os.environ.pop("LEFT")),
    "path": Patch("python settings", lambda: sys.path.append("/left"), lambda: sys.path.remove("/left")),
    "exception hook": Patch(
        "python settings",
        lambda: setattr(sys, "excepthook", print),
        lambda: setattr(sys, "excepthook", sys.__excepthook__),
    ),
    "thread": Patch("threads", lambda: threading.Thread(target=STOP.wait, name="left").start(), lambda: STOP.set()),
}


@pytest.mark.parametrize("name", PROCESS_CHANGES)
def test_a_change_of_the_process_is_noticed(name: str, scene: Any) -> None:
    patch = PROCESS_CHANGES[name]
    before = facts(*scene)
    patch.do()
    try:
        found = differences(before, facts(*scene))
    finally:
        patch.undo()
    assert [(each.group, each.kind) for each in found] == [("process", patch.kind)]


def test_a_child_process_is_noticed(scene: Any) -> None:
    before = facts(*scene)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = differences(before, facts(*scene))
        child.kill()
    assert [each.kind for each in found] == ["child processes"]


def test_replaced_functions_and_names_of_others_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names.taken()

    def backward(self: Any) -> None:
        return None

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.nn.functional, "relu", backward)
    monkeypatch.setattr(torch.Tensor, "left", backward, raising=False)
    monkeypatch.setattr(logging, "left", backward, raising=False)
    monkeypatch.delattr(random, "shuffle")
    found = {(each.kind, each.place): each.after for each in names.changed()}
    assert ("functions replaced", "torch.Tensor.backward") in found
    assert ("functions replaced", "torch.nn.functional.relu") in found
    assert ("attributes added to classes", "torch.Tensor.left") in found
    assert ("functions added to modules", "logging.left") in found
    assert found["functions replaced", "random.shuffle"] == "removed"
    monkeypatch.undo()
    assert names.changed() == []


def test_files_are_noticed_in_the_folder_and_elsewhere(scene: Any, tmp_path: Path) -> None:
    before, writes = facts(*scene), Writes()
    (scene[2] / "inside").write_text("1")
    (tmp_path / "outside").write_text("1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").write_text("1")
    (tmp_path / "gone").unlink()
    (scene[2] / "inside").read_text()
    assert [(each.kind, each.place) for each in differences(before, facts(*scene))] == [("files", "inside")]
    assert writes.left() == {str(tmp_path / "outside"), str(tmp_path / "folder"), str(scene[2] / "inside")}


def test_tensors_that_stay_alive_are_counted_by_their_own_memory(scene: Any) -> None:
    model, _, _ = scene
    tensors = LiveTensors.taken()
    held = [torch.zeros(1000), model.lm_head.weight.detach()]  # the second has no memory of its own
    held.append(held[0][10:])
    assert tensors.new(model) == (3, 4000)
    weight(model).grad = torch.zeros_like(weight(model))  # a training step's
    del held
    assert tensors.new(model) == (0, 0)


def test_everyday_things_are_the_same_until_something_is_done(scene: Any) -> None:
    model, tokenizer, _ = scene
    hook = CountingHook()
    model.model.norm.register_forward_hook(hook)
    fresh, twin = copy.deepcopy(model), copy.deepcopy(model)
    state = model_facts(twin)
    before = outcomes(model, tokenizer, IDS, hook, twin)
    assert [name for name, outcome in before.items() if isinstance(outcome, str)] == []
    assert differences(state, model_facts(twin)) == [], "a state dict loaded into its own copy"
    again = pickled(fresh, IDS)
    assert [name for name, outcome in again.items() if isinstance(outcome, str)] == []
    for module in model.modules():  # as pyvene does
        module._forward_hooks.clear()
    model.requires_grad_(False)
    model.lm_head.bias = nn.Parameter(torch.zeros(model.config.vocab_size))
    tokenizer.padding_side = "left"
    fresh.note = lambda: None
    found = {each.kind: each.after for each in changed(before, outcomes(model, tokenizer, IDS, hook, twin))}
    assert set(found) >= {"the user's own hook", "output_hidden_states", "gradients", "a padded batch", "state_dict"}
    assert found["the user's own hook"] == "0"
    assert found["output_hidden_states"] == "0 tensors"
    assert "forward" not in found
    assert {each.kind for each in changed(again, pickled(fresh, IDS))} == set(again)


def test_damage_has_its_size() -> None:
    was = {"a": [torch.zeros(3)], "b": [torch.tensor([1, 2])], "c": [torch.tensor(4)], "d": "KeyError: x", "e": "same"}
    now = {"a": [torch.tensor([0.0, -0.25, 0.125])], "b": [torch.tensor([1, 3])], "c": [torch.tensor(3)]}
    found = {each.kind: each.after for each in changed(was, now | {"d": [torch.zeros(1)], "e": "same"})}
    assert found == {"a": "off by 0.25", "b": "other whole numbers", "c": "3", "d": "1 tensor"}


def test_differences_of_one_kind_are_counted_together() -> None:
    found = grouped([Difference("model", "training", str(place), "True", "False") for place in range(9)])
    assert [(each["kind"], each["count"], len(each["examples"])) for each in found] == [("training", 9, 3)]


@pytest.fixture(scope="module")
def kept() -> Any:
    return json.loads(KEPT.read_text(encoding="utf-8"))


def kinds(side: Any) -> dict[tuple[str, str], int]:
    """How many differences there are of each kind, without those that depend on the machine."""
    some = (each for each in side["differences"] if each["group"] != "machine" and each["kind"] != "machine code")
    return {(each["group"], each["kind"]): each["count"] for each in some}


@pytest.mark.parametrize(("name", "side"), [("hooks", "left"), ("nnsight", "clean"), ("crosslens nnsight", "clean")])
def test_a_library_leaves_what_is_kept_of_it(name: str, side: str, kept: Any) -> None:
    pytest.importorskip("nnsight", exc_type=ImportError) if "nnsight" in name else None
    found = run("use", name, clean=side == "clean")
    assert "error" not in found, found
    assert kinds(found) == kinds(kept["uses"][name][side])


def test_crosslens_leaves_the_model_and_the_tokenizer_as_they_were(kept: Any) -> None:
    ours = {name: found for name, found in kept["uses"].items() if name.startswith("crosslens ")}
    assert len(ours) == 10
    for name, found in ours.items():
        left = {each["group"] for each in found["clean"]["differences"]}
        assert left <= {"process", "machine"}, name  # what importing the library itself does
        assert found["clean"]["figures"]["tensors kept"] == 0, name
    assert kinds(ours["crosslens hooks"]["clean"]) == {}


def test_what_is_kept_is_of_every_use_and_of_these_versions(kept: Any) -> None:
    assert list(kept["uses"]) == list(USES)
    for name, use in USES.items():
        found = kept["uses"][name]
        assert "error" not in found["clean"], name
        assert (found["left"] is not None) == bool(use.cleans), name
        if use.library not in ("", "crosslens"):
            assert found["version"].partition("+")[0] == version(use.library).partition("+")[0], name
        assert {each["group"] for each in found["clean"]["differences"]} <= set(GROUPS)


def test_the_page_is_what_the_figures_render_to(kept: Any) -> None:
    assert KEPT.with_suffix(".md").read_text(encoding="utf-8") == markdown(kept)


def test_a_use_that_fails_is_a_row_that_says_so(kept: Any) -> None:
    broken = copy.deepcopy(kept)
    broken["uses"] = {"nnsight": broken["uses"]["nnsight"] | {"clean": {"error": "ImportError: no | such"}}}
    assert "| nnsight | 0.8.1 | none | ImportError: no \\| such |" in markdown(broken)


def test_a_worker_that_cannot_do_it_gives_the_error() -> None:
    assert "KeyError" in run("use", "no such use")["error"]
    with pytest.raises(KeyError):
        measure("no such use", True, Path())


@pytest.mark.parametrize(
    ("library", "out", "says"),
    [
        (["nnsigth"], None, "there is no use 'nnsigth'; there are no library, hooks"),
        (None, "residue.txt", r"must be a \.md file in a folder that exists"),
        (None, "nowhere/residue.md", r"must be a \.md file in a folder that exists"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    library: list[str] | None, out: str | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        main(library, tmp_path / out if out else None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_library_sets_is_not_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def process(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(command, 1, "", "said why\n")

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")  # which JAX sets where it is absent
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(subprocess, "run", process)
    assert run("use", "penzai") == {"error": "the process ended with 1: said why"}
    assert {"PATH", "HOME", "TMPDIR"} <= seen[0].keys()
    assert not {"TF_CPP_MIN_LOG_LEVEL", "PYTHONPATH"} & seen[0].keys()


def test_a_run_that_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Any) -> None:
    asked: list[str] = []

    def measured(name: str) -> Any:
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return kept["uses"][name]

    monkeypatch.setattr("crosslens.benchmarks.residue.__main__.measured", measured)
    page = tmp_path / "residue.md"
    with pytest.raises(KeyboardInterrupt):
        main(None, page)
    assert not page.exists(), "a page says that everything was measured"
    main(None, page)
    assert asked == [*list(USES)[:3], *list(USES)[2:]], "what was kept is not measured again"
    assert page.read_text() == markdown(json.loads(page.with_suffix(".json").read_text()))
    assert json.loads(page.with_suffix(".json").read_text())["uses"] == kept["uses"]
