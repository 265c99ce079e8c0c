"""Causal tracing on tiny models: traces by hand, backends against the reference, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.facts import Facts

TASK = Facts()


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any, Any]:
    """Model, work and reference, in float64."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    work = TASK.prepare(model, tokenizer, size="smoke")
    return model, work, TASK.reference(model, work)


# --- what is prepared ---


def test_prompts_know_their_subject_and_answer() -> None:
    model, tokenizer = tiny_model("llama")
    before = torch.get_rng_state()
    work = TASK.prepare(model, tokenizer, size="default")
    assert torch.equal(torch.get_rng_state(), before)
    subjects = [tokenizer.decode(p.ids[0, list(p.subject)]) for p in work.prompts]
    assert subjects == [" France", " Eiffel Tower"]
    assert [tokenizer.decode(p.answer) for p in work.prompts] == [" P", " P"]
    assert "".join(work.prompts[0].tokens) == "The capital of France is the city of"
    assert (work.layers, work.window) == ([0, 1, 2], 1)
    noise = torch.cat([p.noise.flatten() for p in work.prompts])
    about = torch.cat([p.ids[0, list(p.subject)] for p in work.prompts])
    assert noise.dtype == torch.float32
    assert float(noise.std() / model.get_input_embeddings().weight[about].detach().std()) == pytest.approx(3, rel=0.1)
    assert repr(TASK.prepare(model, tokenizer, size="default")) == repr(work)
    # the noise of a fact does not hang on its company in a larger size
    assert torch.equal(TASK.prepare(model, tokenizer, size="smoke").prompts[0].ids, work.prompts[0].ids)


def test_windows_of_mlps_stay_inside_the_model(llama: tuple[nn.Module, Any, Any]) -> None:
    work = dataclasses.replace(llama[1], mlp=[f"m{i}" for i in range(10)], resid=[f"r{i}" for i in range(10)], window=4)
    assert work.restored("resid", 5) == ["r5"]
    assert work.restored("mlp", 5) == ["m3", "m4", "m5", "m6"]
    assert work.restored("mlp", 0) == ["m0", "m1"]
    assert work.restored("mlp", 9) == ["m7", "m8", "m9"]
    assert [work.starts("mlp", layer) for layer in (0, 1, 5)] == [0, 0, 3]
    odd = dataclasses.replace(work, window=3)
    assert odd.restored("mlp", 5) == ["m4", "m5", "m6"]


def test_what_cannot_be_prepared_is_refused() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        TASK.prepare(model, None, size="smoke")
    with pytest.raises(InputError, match="known family, not Linear"):
        TASK.prepare(nn.Linear(2, 2), tokenizer, size="smoke")


# --- by hand ---


def test_traces_by_plain_hooks(llama: tuple[nn.Module, Any, Any]) -> None:
    """Noise on the embedding, and states put back, each trace a forward of its own."""
    model, work, reference = llama
    prompt = work.prompts[0]
    layers: Any = model.model.layers
    states: dict[tuple[str, int], torch.Tensor] = {}

    def logprob(noise: bool, restore: tuple[str, int, int] | None = None, keep: bool = False) -> float:
        def noisy(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, prompt.subject.start : prompt.subject.stop] += prompt.noise
            return output

        def at(kind: str, layer: int) -> Any:
            def on(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                if keep:
                    states[kind, layer] = output.clone()
                if restore and restore[:2] == (kind, layer):
                    output = output.clone()
                    output[0, restore[2]] = states[kind, layer][0, restore[2]]
                return output

            return on

        handles = [model.model.embed_tokens.register_forward_hook(noisy)] if noise else []
        for i, block in enumerate(layers):
            handles += [block.register_forward_hook(at("resid", i)), block.mlp.register_forward_hook(at("mlp", i))]
        with torch.no_grad():
            logits = model(prompt.ids).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(logits.log_softmax(-1)[prompt.answer])

    assert reference["clean"][0] == pytest.approx(logprob(False, keep=True), abs=1e-9)
    assert reference["noised"][0] == pytest.approx(logprob(True), abs=1e-9)
    for kind in ("resid", "mlp"):
        for layer in range(3):
            for position in range(len(prompt.tokens)):
                by_hand = logprob(True, (kind, layer, position))
                assert reference[kind][0, layer, position] == pytest.approx(by_hand, abs=1e-9)
    last = model(prompt.ids).logits[0, -1].detach().numpy()
    assert reference["margin"][0] == pytest.approx(last[prompt.answer] - np.delete(last, prompt.answer).max())
    assert reference["resid"][0, -1, -1] == pytest.approx(reference["clean"][0])  # the end decides


# --- for a reader ---


def test_the_step_is_one_trace(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, reference = llama
    prompt = work.prompts[0]
    with open_inspector("hooks", model) as lens:
        run = TASK.step(lens, work)()
    assert run.logits.shape == TASK.bare(model, work)().logits.shape
    assert prompt.logprob(run.logits).item() == pytest.approx(reference["resid"][0, 1, prompt.subject[-1]])


def test_the_table_the_headline_and_what_is_known(llama: tuple[nn.Module, Any, Any]) -> None:
    _, work, reference = llama
    prompt = work.prompts[0]
    subject = prompt.subject[-1]
    p = {"resid": np.full((1, 3, len(prompt.tokens)), 0.1), "mlp": np.full((1, 3, len(prompt.tokens)), 0.1)}
    p["resid"][0, :2, subject], p["resid"][0, 2, -1] = 0.9, 0.9
    p["mlp"][0, 0, subject] = 0.5
    result = {name: np.log(value) for name, value in p.items()}
    result |= {"clean": np.log([0.9]), "noised": np.log([0.1]), "margin": np.ones(1), "scale": np.ones(1)}
    assert TASK.headline(result, work) == (
        "noise on the subject takes the answer from 0.90 to 0.10; it is restored at the subject's last token until "
        "layer 2, then at the end; of MLPs there, by those around layer 0 (0.50 of it)"
    )
    assert TASK.known(result, work).holds
    for name, wrong in [
        ("margin", -np.ones(1)), ("noised", np.log([0.8])), ("resid", np.log(p["resid"][:, ::-1])),
        ("mlp", np.log(p["mlp"][:, ::-1])),
    ]:  # fmt: skip
        assert not TASK.known(result | {name: wrong}, work).holds
    table = TASK.table(result, work)
    assert list(table.columns) == ["fact", "restored", "layer", "position", "token", "subject", "logprob", "effect"]
    assert len(table) == 2 * 3 * len(prompt.tokens)
    assert table["subject"].sum() == 2 * 3 * len(prompt.subject)
    best = table.sort_values("effect").iloc[-1]
    assert best["effect"] == pytest.approx(0.8)
    assert TASK.table(reference, work)[["logprob", "effect"]].notna().all(axis=None)
