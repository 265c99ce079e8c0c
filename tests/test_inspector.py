"""What the base class does for every backend: results, generation options, resources."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from crosslens.adapters import (
    BackendNotInstalledError,
    InputError,
    SiteError,
    backends,
    load_backend,
    open_inspector,
    registry,
    versions,
)
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector
from crosslens.adapters.versions import UntestedVersionWarning


@pytest.fixture(scope="module")
def lens() -> HooksInspector:
    return HooksInspector(*tiny_model("gpt2", dtype=torch.float64))


def test_text_is_tokenised_without_touching_the_tokenizer(lens: HooksInspector) -> None:
    before = (lens.tokenizer.padding_side, lens.tokenizer._tokenizer.to_str())
    run = lens.run(["a", "abc"], capture="embed")
    alone = lens.run("a", capture="embed")
    assert torch.equal(run["embed"][0, :1], alone["embed"][0])
    assert (lens.tokenizer.padding_side, lens.tokenizer._tokenizer.to_str()) == before


def test_at_reads_logical_positions(lens: HooksInspector) -> None:
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    run = lens.run({"input_ids": ids, "attention_mask": mask}, capture=["embed", "blocks.0.attn.pattern"])
    assert torch.equal(run.at("embed", [0, -1])[0], run["embed"][0, [2, 3]])
    assert torch.equal(run.at("embed", [0, -1])[1], run["embed"][1, [0, 3]])
    assert torch.equal(run.at("blocks.0.attn.pattern", [-1])[0, :, 0], run["blocks.0.attn.pattern"][0, :, 3])
    with pytest.raises(SiteError, match="not all there"):
        run.at("embed", [2])


def test_a_run_without_logits_says_what_there_is() -> None:
    with HooksInspector(nn.Linear(2, 2)) as lens, pytest.raises(SiteError, match=r"run\.output"):
        _ = lens.run(torch.ones(1, 2)).logits


def test_sampling_is_seeded_and_leaves_the_random_state_alone(lens: HooksInspector) -> None:
    ids = torch.tensor([[5, 6, 7]])
    state = torch.get_rng_state()
    one = lens.generate(ids, max_new_tokens=8, temperature=5.0, seed=1).tokens
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(lens.generate(ids, max_new_tokens=8, temperature=5.0, seed=1).tokens, one)
    assert not torch.equal(lens.generate(ids, max_new_tokens=8, temperature=5.0, seed=2).tokens, one)
    greedy = lens.generate(ids, max_new_tokens=8).tokens
    assert torch.equal(lens.generate(ids, max_new_tokens=8, temperature=5.0, top_k=1).tokens, greedy)


def test_generation_stops_at_a_token_and_pads_finished_rows(lens: HooksInspector) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    free = lens.generate(ids, max_new_tokens=6)
    stop = int(free.new_tokens[0, 1])
    out = lens.generate(ids, max_new_tokens=6, stop_at=stop, capture="embed")
    first = out.new_tokens[0].tolist()
    assert first[first.index(stop) :] == [stop] * (len(first) - first.index(stop))
    assert out["embed"].shape[1] == out.tokens.shape[1] - 1


def test_greedy_generation_is_hugging_faces(lens: HooksInspector) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    want = lens.model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert torch.equal(lens.generate(ids, max_new_tokens=6).tokens, want)


@pytest.mark.parametrize("metric", [lambda logits: logits, lambda logits: 1.0])
def test_a_metric_must_be_a_number_or_one_a_row(lens: HooksInspector, metric: object) -> None:
    with pytest.raises(InputError, match="one number a row"):
        lens.gradients(torch.tensor([[5, 6]]), "embed", metric)  # type: ignore[arg-type]


def test_a_metric_must_depend_on_the_model(lens: HooksInspector) -> None:
    with pytest.raises(InputError, match="does not depend"):
        lens.gradients(torch.tensor([[5, 6]]), "embed", lambda logits: torch.zeros(()))


def test_a_model_that_changed_dtype_is_noticed() -> None:
    model, tokenizer = tiny_model("llama")
    lens = HooksInspector(model, tokenizer)
    model.double()
    with pytest.raises(InputError, match="open another"):
        lens.run("abc")


def test_a_misspelled_backend_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'nnsight'"):
        load_backend("nsight")
    assert backends()[0] == "hooks"


def _entry(name: str, **changed: Any) -> Any:
    """An entry point as crosslens registers it, with something else behind it."""
    (entry,) = entry_points(group="crosslens.adapters", name=name)
    return SimpleNamespace(**({"name": name, "value": entry.value, "dist": entry.dist, "load": entry.load} | changed))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("transformer_lens", "pip install 'crosslens[transformer-lens]'"),
        ("penzai", "pip install 'crosslens[penzai]'"),
        ("inseq", "pip install --no-deps inseq captum treescope"),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> None:
    def load() -> None:
        raise ModuleNotFoundError("No module named 'absent_library'", name="absent_library")

    monkeypatch.setattr(registry, "_entries", lambda: {name: _entry(name, load=load)})
    with pytest.raises(BackendNotInstalledError, match=re.escape(command)):
        open_inspector(name, nn.Linear(1, 1))


def test_every_backend_with_a_library_has_an_extra() -> None:
    for name in backends():
        if load_backend(name).library is not None:
            assert "pip install 'crosslens[" in registry._how_to_install(_entry(name)), name


def test_an_untested_version_of_a_library_warns_once_and_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.warn_if_untested.cache_clear()
    monkeypatch.setattr(versions, "version", lambda name: "0.9.2")
    with pytest.warns(
        UntestedVersionWarning, match=r"nnsight 0\.9\.2 is installed.*tested with nnsight <0\.9,>=0\.8\.1"
    ):
        load_backend("nnsight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backend("nnsight")


def test_the_installed_versions_are_tested_ones() -> None:
    """Nothing warns here, where every library has the version that constraints.txt gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntestedVersionWarning)
        versions.warn_if_untested.cache_clear()
        for name in backends():
            library = load_backend(name).library
            if library is not None:
                versions.warn_if_untested(registry._entries()[name], library)


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        open_inspector("hooks", "smollm2-135m")  # type: ignore[arg-type]
