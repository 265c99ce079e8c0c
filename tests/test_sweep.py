"""A sweep gives what a forward an edit gives, whatever runs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crosslens.adapters import (
    Edit,
    EditError,
    InputError,
    Inspector,
    SiteError,
    add,
    apply,
    open_inspector,
    replace,
    scale,
    zero,
)  # fmt: skip
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks import sweep
from crosslens.tasks import sweeping as module
from crosslens.tasks.tail import Part, Stored

BACKENDS = ("hooks", "nnsight", "pyvene", "transformer_lens")
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(1))
OTHER = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(2))


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 7]


def loop(lens: Inspector, inputs: Any, edits: list[list[Edit]]) -> Tensor:
    return torch.stack([metric(lens.run(inputs, edits=element).logits) for element in edits])


def patches(lens: Inspector) -> list[list[Edit]]:
    """Residual stream by layer and position, heads, neurons, several sites at once, and what cannot share a forward."""
    clean = lens.run(IDS, capture=["blocks.*.resid_post", "blocks.*.attn.z"])
    residual = [f"blocks.{layer}.resid_post" for layer in range(3)]
    heads = [f"blocks.{layer}.attn.z" for layer in range(3)]
    found = [[replace(site, clean[site][:, p : p + 1], positions=[p])] for site in residual for p in range(7)]
    found += [[replace(site, clean[site][:, :, h : h + 1], heads=[h])] for site in heads for h in range(4)]
    found += [[zero("blocks.1.mlp.post", units=[3]), scale("blocks.2.attn.out", 0.5)], [scale("blocks.*.mlp.out", 0.9)]]
    found += [[], [zero("embed", positions=[0])], [zero("blocks.2.resid_mid", rows=[-1])], [zero("final_norm")]]
    found += [[apply("blocks.1.resid_post", lambda x: x - x.mean(0))], [zero("logits", positions=[-1])]]
    return [*found, [zero("module:lm_head:input")]] if lens.capabilities["edit.module"] else found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_sweep_is_a_forward_an_edit(family: str, backend: str) -> None:
    with open_inspector(backend, *tiny_model(family, dtype=torch.float64)) as lens:
        edits = [e for e in patches(lens) if family != "gpt_neox" or not any("resid_mid" in edit.site for edit in e)]
        want = loop(lens, OTHER, edits)
        assert len({round(float(v), 9) for v in want[:, 0]}) > len(edits) // 2, "vacuous: the edits do hardly anything"
        for options in ({}, {"logits_at": [-1]}, {"max_rows": 5}, {"max_rows": 1}):
            got = sweep(lens, OTHER, edits, metric, **options)  # type: ignore[arg-type]
            assert got.shape == (len(edits), 2)
            assert torch.allclose(got, want, rtol=0, atol=1e-12), options


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_too(side: str) -> None:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, slice(0, 3) if side == "left" else slice(4, 7)] = 0
    inputs = {"input_ids": OTHER, "attention_mask": mask}
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as lens:
        edits = [[scale(f"blocks.{layer}.resid_post", 1.5, positions=[-1, 0])] for layer in range(3)]
        run = [lens.run(inputs, edits=e, capture="logits").at("logits", [-1, 1]) for e in edits]
        want = torch.stack([logits[:, 0, 5] - logits[:, 1, 7] for logits in run])
        got = sweep(lens, inputs, edits, lambda logits: logits[:, 0, 5] - logits[:, 1, 7], logits_at=[-1, 1])
        assert torch.allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["hooks", "nnsight", "pyvene"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_blocks_before_the_edit_do_not_run_again(family: str, backend: str) -> None:
    """The point of it: counted at the caller's own weights, which every shadow shares."""
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    names = {"llama": "model.layers.0.mlp", "gpt2": "transformer.h.0.mlp", "gpt_neox": "gpt_neox.layers.0.mlp"}
    seen: list[tuple[int, ...]] = []
    model.get_submodule(names[family]).register_forward_hook(lambda module, args, out: seen.append(args[0].shape[:2]))
    with open_inspector(backend, model, tokenizer) as lens:
        sweep(lens, OTHER, [[zero("blocks.2.attn.z", heads=[h])] for h in range(4)], metric)
    assert seen == [(2, 7), (2, 3)], "one forward for the stored state, one of half the inputs to see who sees whom"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_positions_before_the_edit_do_not_run_again(family: str, backend: str) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    names = {"llama": "model.layers.2.mlp", "gpt2": "transformer.h.2.mlp", "gpt_neox": "gpt_neox.layers.2.mlp"}
    seen: list[tuple[int, ...]] = []
    model.get_submodule(names[family]).register_forward_hook(lambda module, args, out: seen.append(args[0].shape[:2]))
    with open_inspector(backend, model, tokenizer) as lens:
        state = lens.run(OTHER, capture="blocks.1.resid_post")["blocks.1.resid_post"]
        other = state.clone()
        other[:, 4:] += 1.0
        edits = [[replace("blocks.1.resid_post", other[:, [p, 1]], positions=[p, 1])] for p in (6, 4, 3)]
        edits += [
            [replace("blocks.1.resid_post", other)],
            [add("blocks.2.attn.z", torch.ones(2, 1, 4, 8).double(), positions=[5])],
        ]
        want = loop(lens, OTHER, edits)
        plain = metric(lens.run(OTHER).logits)
        seen.clear()
        for options in ({}, {"logits_at": [-1]}, {"logits_at": [3, -1]}):
            got = sweep(lens, OTHER, edits, lambda logits: metric(logits), **options)  # type: ignore[arg-type]
            assert torch.allclose(got, want, rtol=0, atol=1e-12)
            assert torch.equal(got[2], plain), "what puts in what is there needs no forward"
        assert seen[:4] == [(2, 7), (2, 3), (2, 7), (10, 3)], "stored, half, keys, and all from 4 on"
        at = sweep(lens, OTHER, edits, lambda logits: logits[:, 0, 5], logits_at=[3])
        assert torch.equal(at, lens.run(OTHER).logits[:, 3, 5].expand(5, 2)), "before them nothing is different"


def test_where_tokens_see_those_after_them_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that looks ahead: the causality is looked at, not taken for granted."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    for layer in model.model.layers:
        inner = layer.self_attn.forward

        def ahead(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
            kwargs["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
            return inner(*args, **kwargs)

        layer.self_attn.forward = ahead
    with open_inspector("hooks", model, tokenizer) as lens:
        edits = [[scale("blocks.0.resid_post", 0.5, positions=[p])] for p in (3, 6)]
        assert float((lens.run(OTHER[:, :3]).logits - lens.run(OTHER).logits[:, :3]).abs().max()) > 1e-3
        assert torch.allclose(sweep(lens, OTHER, edits, metric), loop(lens, OTHER, edits), rtol=0, atol=1e-12)


def test_a_shortened_model_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """Ends in other logits."""

        runs: ClassVar[list[int]] = []
        closed = 0

        def run(self, inputs: Any, edits: Any, part: Part) -> Tensor:
            self.runs.append(part.cut)
            return torch.ones(2 * part.times, inputs["input_ids"].shape[1], 311, dtype=torch.float64)

        def keep(self, inputs: Any, part: Part) -> Stored:
            return {2: (torch.ones(2, 4, 7, 8), torch.ones(2, 4, 7, 8))}

        def close(self) -> None:
            Wrong.closed += 1

    monkeypatch.setattr(module, "tail_of", lambda *_: Wrong())
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as lens:
        edits = [[zero("blocks.2.attn.z", heads=[h], positions=[5])] for h in range(4)]
        edits += [[zero("blocks.1.attn.z", heads=[h])] for h in range(4)]
        assert torch.allclose(sweep(lens, OTHER, edits, metric), loop(lens, OTHER, edits), rtol=0, atol=1e-12)
    assert Wrong.runs == [0, 0]
    assert Wrong.closed == 1


def test_any_module_is_swept_one_by_one() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    with open_inspector("hooks", net) as lens:
        got = sweep(lens, x, [[zero("module:1:output", units=[u])] for u in range(3)], lambda out: out[:, 0])
        hidden = net[1](net[0](x))
        for u in range(3):
            without = hidden.clone()
            without[:, u] = 0
            assert torch.equal(got[u], net[2](without)[:, 0])


def test_a_training_model_draws_its_masks_as_alone() -> None:
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    model.train()
    with open_inspector("hooks", model, tokenizer) as lens:
        edits = [[scale("blocks.1.resid_post", f)] for f in (0.5, 2.0)]
        torch.manual_seed(0)
        want = loop(lens, OTHER, edits)
        torch.manual_seed(0)
        assert torch.equal(sweep(lens, OTHER, edits, metric), want)


def test_mistakes_are_refused_before_anything_runs() -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    with open_inspector("hooks", model, tokenizer) as lens:
        good = [zero("blocks.0.attn.z")]
        with pytest.raises(SiteError, match=r"blocks\.1\.resid_post"):
            sweep(lens, OTHER, [good, [zero("blocks.1.resid_pots")]], metric)
        with pytest.raises(EditError, match="head 9"):
            sweep(lens, OTHER, [good, [zero("blocks.1.attn.z", heads=[9])]], metric)
        with pytest.raises(InputError, match="rows have"):
            sweep(lens, OTHER, [good], metric, logits_at=[7])
        with pytest.raises(InputError, match="max_rows is 0"):
            sweep(lens, OTHER, [good], metric, max_rows=0)
        assert not runs
        with pytest.raises(InputError, match="one number a row"):
            sweep(lens, OTHER, [good], lambda logits: logits[:, -1])
        assert sweep(lens, OTHER, [], metric).shape == (0, 2)


def test_progress_ends_at_all() -> None:
    told = []
    with open_inspector("hooks", *tiny_model("llama")) as lens:
        edits = [[zero(f"blocks.{layer}.attn.z", heads=[h])] for layer in range(3) for h in range(4)]
        sweep(lens, OTHER, edits, metric, max_rows=4, progress=lambda *done: told.append(done))
    assert told[-1] == (12, 12)
    assert len(told) == 6


@settings(max_examples=10)
@given(order=st.permutations(range(9)), rows=st.integers(1, 12))
def test_order_and_batching_play_no_part(order: list[int], rows: int) -> None:
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as lens:
        value = torch.ones(2, 1, 32, dtype=torch.float64)
        edits = [[add(f"blocks.{layer}.resid_pre", value, positions=[p])] for layer in range(3) for p in (0, 3, 6)]
        plain = sweep(lens, OTHER, edits, metric)
        again = sweep(lens, OTHER, [edits[i] for i in order], metric, max_rows=rows)
        assert torch.allclose(again, plain[list(order)], rtol=0, atol=1e-12)


def test_a_sweep_that_was_cut_goes_on(tmp_path: Path) -> None:
    path, seen = tmp_path / "map.jsonl", []
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as lens:
        edits = patches(lens)
        want = sweep(lens, OTHER, edits, metric)

        def cut(done: int, total: int) -> None:
            if done > 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sweep(lens, OTHER, edits, metric, out=path, progress=cut)
        kept = path.read_text().splitlines()
        assert 10 < len(kept) - 1 < len(edits)
        path.write_text("\n".join(kept) + '\n[3, "float64", ["0x1')  # and one that was being written
        got = sweep(lens, OTHER, edits, metric, out=path, progress=lambda done, total: seen.append(done))
        assert torch.equal(got, want)
        assert seen[0] > len(kept) - 1
        assert seen[-1] == len(edits)
        assert torch.equal(sweep(lens, OTHER, edits, lambda logits: 1 / 0, out=path), want), "nothing was left to run"
        with pytest.raises(InputError, match="another sweep: its inputs differ"):
            sweep(lens, IDS, edits, metric, out=path)
        with pytest.raises(InputError, match="another sweep: its edits, elements differ"):
            sweep(lens, OTHER, edits[:-1], metric, out=path)
        path.write_text("something else\n")
        with pytest.raises(InputError, match="something else than a sweep"):
            sweep(lens, OTHER, edits, metric, out=path)
        path.write_text('{"sweep": 99}\n')
        with pytest.raises(InputError, match="of schema 99; this version reads 1"):
            sweep(lens, OTHER, edits, metric, out=path)
        with pytest.raises(InputError, match="cannot be read or written"):
            sweep(lens, OTHER, edits, metric, out=tmp_path)
