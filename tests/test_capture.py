"""What recording costs: equal work is held to, samples are kept, and the table is made from them alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from crosslens.adapters.architectures import describe
from crosslens.adapters.conformance.models import tiny_model
from crosslens.benchmarks import capture
from crosslens.benchmarks.direct import DIRECTLY, blocks_of, hooks_directly

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
APP = typer.Typer()
APP.command()(capture.main)


@pytest.mark.parametrize("name", ["hooks", "pyvene", "tdhook", "penzai", "nnsight", "transformer_lens"])
def test_each_library_used_directly_gives_every_block(name: str) -> None:
    pytest.importorskip(f"crosslens.adapters.{name}", exc_type=ImportError)
    model, _ = tiny_model("llama")
    model.requires_grad_(False)
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out: seen.append(out.clone()))
        for path in blocks_of(describe(model))
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    with DIRECTLY[name](model, IDS) as call:
        capture.assert_right(name, call, seen)
        assert capture.hooks(model) == 0, "the bare forward would run them too"
    assert capture.hooks(model) == 0


def test_unequal_work_is_noticed() -> None:
    model, _ = tiny_model("llama")
    with hooks_directly(model, IDS) as call:
        want = call()
        capture.assert_right("right", call, want)
        capture.assert_right("bare", lambda: [], want)
        for wrong, says in (
            (lambda: call()[:-1], "2 tensors, must be 3"),
            (lambda: call()[::-1], "block 0: off by"),
            (lambda: [each[:, :1] for each in call()], "block 0: shape"),
            (lambda: [each.requires_grad_() for each in call()], "block 0: in a graph"),
            (lambda: want, "share their memory"),
        ):
            with pytest.raises(AssertionError, match=says):
                capture.assert_right("wrong", wrong, want)


def test_samples_are_kept_and_the_table_is_made_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_hold_to", lambda threads: None)  # it would hold all of pytest
    monkeypatch.setattr(capture, "_LEAST_SECONDS", 0.0)
    file = tmp_path / "kept.json"
    shapes, how = ["--shape", "2x4", "--shape", "1x3"], ["--rounds", "3", "--clock", "cpu", "--out", str(file)]
    given = ["--model", "tiny-gpt2", *shapes, *how]
    ran = CliRunner().invoke(APP, [*given, "--backend", "hooks", "--backend", "captum"])
    assert ran.exit_code == 0, ran.output
    kept = json.loads(file.read_text())
    assert [(shape["batch"], shape["tokens"]) for shape in kept["shapes"]] == [(2, 4), (1, 3)]
    assert kept["environment"]["versions"]["torch"]
    ((seconds),) = kept["shapes"][0]["seconds"]
    assert list(seconds) == ["bare", "bare again", "hooks", "hooks directly"], "captum captures nothing"
    assert all(len(samples) == 3 and min(samples) > 0 for samples in seconds.values())
    shown = CliRunner().invoke(APP, ["--show", str(file)])
    assert shown.exit_code == 0
    assert shown.stdout == ran.stdout, "but for the progress, which is on stderr"
    ratio = np.median(np.array(seconds["hooks"]) / np.array(seconds["hooks directly"]))
    assert f"{ratio:.3f} [" in shown.output, "the price of the interface is the median of paired ratios"
    again = CliRunner().invoke(APP, given)
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize(
    "wrong",
    [["--shape", "8by64"], ["--shape", "0x4"], ["--rounds", "0"], ["--model", "tiny-lama"], ["--backend", "captum"]],
)
def test_wrong_usage_is_refused(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_hold_to", lambda threads: None)
    ran = CliRunner().invoke(APP, ["--model", "tiny-gpt2", *wrong])
    assert ran.exit_code == 2, ran.output
    right = {"--rounds": "1", "--shape": "8x64", "--model": "tiny-llama", "--backend": "crosslens backends"}
    assert right[wrong[0]] in ran.output
