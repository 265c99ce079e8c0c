"""The penzai backend: that penzai runs, that little is compiled, that what it converts wrongly is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from crosslens.adapters import EditError, UnsupportedError, add, apply, replace, scale, zero
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.edits import Edit
from crosslens.adapters.hooks import HooksInspector

pytest.importorskip("penzai")

import jax
import jax.numpy as jnp
from penzai import pz

from crosslens.adapters.penzai import PenzaiInspector, _rounded
from crosslens.adapters.penzai_convert import precision, to_jax, to_torch

FAMILIES = ("llama", "gpt_neox")
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
RESID, Z = "blocks.1.resid_post", "blocks.1.attn.z"


def model_of(family: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A tiny random model, with options of its config."""
    if not options:
        return tiny_model(family, dtype=dtype, attn_implementation="eager")[0]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    config = AutoConfig.for_model(family, **{"vocab_size": 311, "pad_token_id": 0, **sizes, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def assert_same(got: Tensor, want: Tensor, what: str = "", limit: float = 2e-6) -> None:
    assert got.shape == want.shape, what
    assert got.dtype == want.dtype, what
    error = (got - want).abs().max().item()
    assert error <= limit * want.abs().max().item(), f"{what}: off by {error:.3g}"


def real(tensor: Tensor, site: str) -> Tensor:
    """What lies at real tokens of MASK, and for patterns at real keys."""
    if site.endswith("pattern"):
        tensor = (tensor * MASK[:, None, None]).transpose(1, 2)
    return tensor[MASK.bool()]


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 9]


@contextmanager
def compilations() -> Iterator[list[str]]:
    """One entry for each function that XLA compiles inside."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# ---- penzai runs


def test_penzai_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are compiled from penzai's layers: from three different blocks once, and not at all without penzai."""
    traced: list[Any] = []
    plain = pz.nn.Attention.__call__

    def counted(self: Any, x: Any, **side: Any) -> Any:
        traced.append(self)
        return plain(self, x, **side)

    monkeypatch.setattr(pz.nn.Attention, "__call__", counted)
    model = model_of("llama")
    monkeypatch.setattr(type(model), "forward", None)
    with PenzaiInspector(model) as lens:
        logits = lens.run(IDS[:1].expand(11, -1)).logits
        assert len(traced) == 1, "one function for all blocks, of a batch size that nobody has asked for before"

        def broken(self: Any, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no penzai today")

        monkeypatch.setattr(pz.nn.Attention, "__call__", broken)
        assert torch.equal(lens.run(IDS[:1].expand(11, -1)).logits, logits), "it is compiled"
        with pytest.raises(RuntimeError, match="no penzai today"):
            lens.run(IDS[:1].expand(13, -1))


def test_sites_are_found_by_penzai_selectors() -> None:
    """Each layer that is put in lies in penzai's own tree, at the place that the site means."""
    from crosslens.adapters.penzai_convert import convert
    from crosslens.adapters.penzai_segments import AtSite, Heads, _put_in

    block = convert(model_of("llama"), "llama").body.sublayers[2]
    heads = Heads(("head_groups",), ("query_heads",))
    for site in ("attn.q", "attn.pattern", "attn.z", "attn.out", "resid_mid", "mlp.post", "resid_post"):
        new = AtSite(None, None, heads.axes[site], pz.StateVariable(None, label=site))
        changed = _put_in(block, site, new)
        assert pz.select(changed).at_instances_of(AtSite).count() == 1, site
        inside = pz.select(changed).at_instances_of(pz.nn.Attention).at_instances_of(AtSite).count()
        assert inside == (site in ("attn.q", "attn.pattern", "attn.z")), site


# ---- little is compiled


def test_a_sweep_compiles_nothing_new() -> None:
    def edits() -> Iterator[Edit]:
        for layer in range(3):
            for position in range(7):
                yield replace(f"blocks.{layer}.resid_post", torch.randn(2, 1, 32).double(), positions=[position])
                yield add(f"blocks.{layer}.mlp.post", torch.randn(2, 1, 80).double(), positions=[position])
            for head in range(4):
                yield zero(f"blocks.{layer}.attn.z", heads=[head])
                yield scale(f"blocks.{layer}.attn.q", 2.0, heads=[head], rows=[1])
                yield apply(f"blocks.{layer}.attn.out", torch.tanh, units=[head])

    with PenzaiInspector(model_of("llama")) as lens:
        plain = lens.run(IDS, capture="blocks.*.resid_post").logits
        lens.run(IDS, edits=[zero(Z)])
        seen = set()
        with compilations() as compiled:
            for edit in edits():
                seen.add(lens.run(IDS, edits=[edit]).logits.sum().item())
        assert not compiled
        assert len(seen) == 3 * (14 + 12), "vacuous: two edits gave the same"
        assert plain.sum().item() not in seen


def test_lengths_and_models_of_one_shape_share_what_is_compiled() -> None:
    ids = torch.arange(3, 35)[None]
    with PenzaiInspector(model_of("gpt_neox")) as lens:
        lens.run(ids, capture="*")
    other = model_of("gpt_neox")
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    with PenzaiInspector(other) as lens, HooksInspector(other) as hooks:
        lens.run(ids[:, :1])  # what converting compiles, and one column
        with compilations() as compiled:
            runs = {length: lens.run(ids[:, :length], capture="*") for length in range(17, 33, 3)}
        assert not compiled
        for length, run in runs.items():
            assert_same(run.logits, hooks.run(ids[:, :length]).logits, f"{length} tokens")


@pytest.mark.parametrize("cached", [True, False])
def test_a_long_generation_compiles_no_more_than_a_short_one(cached: bool) -> None:
    """Across the width at which another function is needed, with the tokens and logits of plain PyTorch."""
    ids = torch.arange(3, 17)[None]
    options: dict[str, Any] = {"use_cache": cached, "capture": [Z], "edits": [scale(RESID, 1.5, positions=[3, 20])]}
    with PenzaiInspector(model_of("llama")) as lens, HooksInspector(lens.model) as hooks:
        lens.generate(ids, max_new_tokens=8, **options)
        with compilations() as compiled:
            got = lens.generate(ids, max_new_tokens=17, **options)
        assert len(compiled) <= 1, "one token at a time, and not one function a token"
        want = hooks.generate(ids, max_new_tokens=17, **options)
    assert torch.equal(got.tokens, want.tokens)
    assert_same(got.logits, want.logits, limit=1e-5)
    assert_same(got[Z], want[Z], limit=1e-5)


def test_widths_are_few_and_waste_little() -> None:
    widths = {length: _rounded(length) for length in range(2, 4097)}
    assert all(length <= width <= max(length + 15, length * 9 / 8) for length, width in widths.items())
    assert len(set(widths.values())) < 50
    assert all(_rounded(width) == width for width in widths.values())


# ---- right, beyond the kit's models


def rope(**options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", **options}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-head": ("llama", {}),
    "multi-query": ("llama", {"num_key_value_heads": 1}),
    "tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2, **rope(rope_theta=10.0)}),
    "mistral-window": ("mistral", {"sliding_window": 3, "num_key_value_heads": 2}),
    "neox-eps": ("gpt_neox", {"layer_norm_eps": 1e-1, "hidden_act": "gelu_new"}),
    "neox-rotary": ("gpt_neox", {"hidden_act": "relu", **rope(rope_theta=50.0, partial_rotary_factor=1.0)}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_site_of_a_variant_is_what_hooks_see(name: str) -> None:
    family, options = VARIANTS[name]
    model = model_of(family, **({"tie_word_embeddings": False} | options))
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    edits = [scale("blocks.0.attn.k", 1.5), zero(Z, positions=[-1])]
    with PenzaiInspector(model) as lens, HooksInspector(model) as hooks:
        got, want = lens.run(inputs, capture="*", edits=edits), hooks.run(inputs, capture="*", edits=edits)
        assert list(got) == list(want)
        for site in want:
            assert torch.isfinite(got[site]).all(), site
            assert_same(real(got[site], site), real(want[site], site), site)
        assert_same(real(got.logits, "logits"), real(want.logits, "logits"), "logits")


def test_position_ids_turn_and_those_that_would_pack_sequences_are_refused() -> None:
    """transformers takes a jump in position_ids for the start of another sequence, if there is no mask."""
    with PenzaiInspector(model_of("llama")) as lens, HooksInspector(lens.model) as hooks:
        later = {"input_ids": IDS, "position_ids": torch.arange(5, 12)[None]}
        assert_same(lens.run(later).logits, hooks.run(later).logits)
        gap = {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 9, 10, 11, 12]])}
        with pytest.raises(UnsupportedError, match="position_ids"):
            lens.run(gap)
        masked = {**gap, "attention_mask": MASK}
        got, want = lens.run(masked).logits, hooks.run(masked).logits
        assert_same(real(got, "logits"), real(want, "logits"))
        unturned = lens.run({"input_ids": IDS, "attention_mask": MASK}).logits
        assert real(unturned - want, "logits").abs().max() > 1e-2, "vacuous: positions make no difference"


PICK = st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True)
KINDS = st.sampled_from(["replace", "add", "scale", "zero"])


@settings(max_examples=40)
@given(edits=st.lists(st.tuples(KINDS, PICK, PICK, PICK, st.integers(0, 9)), min_size=1, max_size=5))
def test_any_edits_of_one_site_come_to_one_scale_and_shift(edits: list[Any]) -> None:
    """The law behind the one compiled function: a chain of edits is `x * scale + shift`."""
    made, site = [], "blocks.1.mlp.post"
    for kind, rows, positions, units, seed in edits:
        where = {"rows": rows, "positions": positions, "units": units}
        shape = [
            len(chosen) if chosen else size for chosen, size in zip((rows, positions, units), (2, 7, 80), strict=True)
        ]
        value = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        made.append(
            replace(site, value, **where) if kind == "replace" else add(site, value, **where) if kind == "add"
            else scale(site, seed - 4.5, **where) if kind == "scale" else zero(site, **where)
        )  # fmt: skip
    got, want = _LENS().run(IDS, capture=[site], edits=made), _HOOKS().run(IDS, capture=[site], edits=made)
    assert_same(got[site], want[site], limit=1e-5)
    assert_same(got.logits, want.logits, limit=1e-5)


def _shared(make: Callable[[Any], Any]) -> Callable[[], Any]:
    """One inspector for all examples of a property, opened when the first is run."""
    opened: list[Any] = []

    def get() -> Any:
        if not opened:
            opened.append(make(model_of("llama")))
        return opened[0]

    return get


_LENS, _HOOKS = _shared(PenzaiInspector), _shared(HooksInspector)


def test_zero_is_zero_also_where_something_is_not_finite() -> None:
    with PenzaiInspector(model_of("llama")) as lens:
        infinite = torch.full((2, 7, 32), torch.inf, dtype=torch.float64)
        edits = [replace("blocks.0.resid_post", infinite), zero("blocks.1.resid_post")]
        run = lens.run(IDS, capture=["blocks.1.resid_pre", RESID], edits=edits)
    assert torch.isinf(run["blocks.1.resid_pre"]).all()
    assert not run[RESID].any()
    assert torch.isfinite(run.logits).all()


# ---- functions of the caller's


def test_a_function_runs_once_on_what_really_arrives() -> None:
    calls: list[Tensor] = []

    def reverse(part: Tensor) -> Tensor:
        calls.append(part.clone())
        return part.flip(-1)

    edits = [
        scale("blocks.1.attn.v", 3.0),
        apply("blocks.1.mlp.post", reverse),
        add(RESID, torch.ones(2, 7, 32).double()),
    ]
    edits += [apply(Z, torch.sin, heads=[1]), scale("blocks.1.mlp.post", 0.5, units=[3])]
    with PenzaiInspector(model_of("gpt_neox")) as lens, HooksInspector(lens.model) as hooks:
        got = lens.run(IDS, capture="blocks.*", edits=edits)
        (seen,) = calls
        want = hooks.run(IDS, capture="blocks.*", edits=edits)
    assert_same(seen, calls[1], "what the function was given")
    for site in want:
        assert_same(got[site], want[site], site)


def test_gradients_pass_through_a_function() -> None:
    edits = [apply(Z, lambda part: part.sin() * part, heads=[1]), scale("blocks.1.mlp.out", 2.0)]
    sites = ["embed", "blocks.0.mlp.out", "blocks.1.attn.v", Z, "blocks.1.resid_mid", "final_norm"]
    with PenzaiInspector(model_of("llama")) as lens, HooksInspector(lens.model) as hooks:
        got = lens.gradients(IDS, sites, metric, edits=edits)
        want = hooks.gradients(IDS, sites, metric, edits=edits)
    for site in sites:
        assert_same(got[site], want[site], f"gradient at {site}", 1e-5)


def test_after_a_function_that_fails_no_block_runs_and_the_next_run_is_clean() -> None:
    later: list[int] = []

    def fails(part: Tensor) -> Tensor:
        raise EditError("not today")

    def notes(part: Tensor) -> Tensor:
        later.append(1)
        return part

    with PenzaiInspector(model_of("llama")) as lens:
        plain = lens.run(IDS).logits
        with pytest.raises(EditError, match="not today"), lens.work() as done:
            lens.run(IDS, edits=[apply("blocks.0.resid_post", fails), apply(RESID, notes)])
        with lens.work() as whole:
            assert torch.equal(lens.run(IDS).logits, plain)
    assert not later
    assert 0 < done.count < whole.count / 2


def test_a_stopped_forward_does_no_more_than_it_must() -> None:
    with PenzaiInspector(model_of("llama")) as lens:
        counts = []
        for site in ("blocks.1.attn.q", "blocks.1.mlp.post", "final_norm"):
            with lens.work() as done:
                run = lens.run(IDS, capture=[site], until=site)
            assert run.output is None
            counts.append(done.count)
        with lens.work() as whole:
            lens.run(IDS)
    assert counts == sorted(set(counts))
    assert counts[0] < 0.4 * whole.count
    assert counts[-1] < whole.count


# ---- the caller's model and process


def test_weights_are_copied_and_converted_anew_when_they_change() -> None:
    model = model_of("llama")
    with PenzaiInspector(model) as lens, HooksInspector(model) as hooks:
        versions = [p._version for p in model.parameters()]
        plain = lens.run(IDS).logits
        assert [p._version for p in model.parameters()] == versions

        def in_place() -> None:
            with torch.no_grad():
                model.model.layers[1].mlp.down_proj.weight.mul_(2)

        def loaded() -> None:
            model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()})

        def trained() -> None:
            model(IDS).logits.square().mean().backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()

        def put_in_place() -> None:
            model.model.norm.weight = nn.Parameter(model.model.norm.weight.detach() * 3)

        before = plain
        for change in (in_place, loaded, trained, put_in_place):
            change()
            now = lens.run(IDS).logits
            assert (now - before).abs().max() > 1e-3, f"{change.__name__} did not arrive"
            assert_same(now, hooks.run(IDS).logits, change.__name__, 1e-5)
            before = now


def test_a_change_during_a_run_counts_from_the_next() -> None:
    """A copy: what a function does to the weights in the middle of a forward does not reach the rest of it."""
    model = model_of("llama")

    def spoils(part: Tensor) -> Tensor:
        model.lm_head.weight.mul_(0)
        return part

    with PenzaiInspector(model) as lens:
        plain = lens.run(IDS).logits
        assert torch.equal(lens.run(IDS, edits=[apply("embed", spoils)]).logits, plain)
        assert not lens.run(IDS).logits.any()


def test_the_callers_jax_is_as_it_was() -> None:
    inside: list[Any] = []

    def look(part: Tensor) -> Tensor:
        inside.append(jnp.zeros(2, dtype=float).dtype)
        return part

    before = dict(jax.config.values)
    with PenzaiInspector(model_of("llama")) as lens:
        lens.run(IDS, edits=[apply(RESID, look)])
        lens.gradients(IDS, ["final_norm"], metric)
    assert dict(jax.config.values) == before
    assert inside == [jnp.float32]
    assert jnp.zeros(2, dtype=float).dtype == jnp.float32


def test_a_float64_model_is_float64_where_jax_was_told_so_and_a_float32_one_is_not() -> None:
    with jax.enable_x64(True), PenzaiInspector(model_of("llama", torch.float32)) as lens:
        assert lens.run(IDS, capture=[Z])[Z].dtype == torch.float32
        assert jax.config.jax_enable_x64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_survive_the_way_to_jax_and_back(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.1, -0.0, torch.inf], [1e-30, 3.0, torch.nan]]).to(dtype)
    with precision(dtype):
        back = to_torch(to_jax(tensor.T), torch.device("cpu"))
    assert back.dtype == dtype
    assert torch.equal(back.nan_to_num(7), tensor.T.nan_to_num(7))
    back.zero_()
    assert tensor[1, 1] == 3, "memory of its own"


# ---- refusals


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True: the biases would be left out"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu': it would be taken as silu"),
        ("llama", {"head_dim": 16}, "head_dim=16: with 4 heads"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "rope_type='linear'",
        ),
        ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual=False"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias=False"),
        ("gpt_neox", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act='gelu_pytorch_tanh'"),
    ],
)
def test_what_would_be_converted_wrongly_is_refused_at_open(family: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match="does not convert") as error:
        PenzaiInspector(model_of(family, **options))
    assert says in str(error.value)


def test_other_models_are_refused_at_open() -> None:
    with pytest.raises(UnsupportedError, match=r"family\.gpt2"):
        PenzaiInspector(tiny_model("gpt2")[0])
    with pytest.raises(UnsupportedError, match=r"capture\.module"):
        PenzaiInspector(nn.Linear(3, 3))
    with pytest.raises(UnsupportedError, match=r"weights of torch\.float16"):
        PenzaiInspector(model_of("llama", torch.float16))
    mixed = model_of("llama", torch.float32)
    mixed.lm_head.to(torch.float64)
    with pytest.raises(UnsupportedError, match=r"weights of torch\.float32, torch\.float64"):
        PenzaiInspector(mixed)

    class Mine(type(model_of("llama"))):  # type: ignore[misc]  # a forward of its own, for all penzai knows
        pass

    with pytest.raises(UnsupportedError, match="class Mine"):
        PenzaiInspector(Mine(model_of("llama").config))
    adapted = model_of("llama")
    adapted.model.layers[0].mlp.extra = nn.Linear(2, 3).double()
    with pytest.raises(UnsupportedError, match="of which its converter takes"):
        PenzaiInspector(adapted)
    odd = model_of("gpt_neox")
    odd.config.rope_parameters["partial_rotary_factor"] = 0.375
    with pytest.raises(UnsupportedError, match="3 dimensions of a head"):
        PenzaiInspector(odd)


def test_hooks_and_dropout_that_would_not_act_are_refused_and_transformers_own_hooks_are_not() -> None:
    model = model_of("llama", attention_dropout=0.5)
    with torch.no_grad():
        model(IDS, output_hidden_states=True, output_attentions=True)  # leaves hooks of its own
    with PenzaiInspector(model) as lens:
        plain = lens.run(IDS).logits
        handle = model.model.layers[0].register_forward_hook(lambda *_: None)
        with pytest.raises(UnsupportedError, match=r"coexist\.hooks"):
            lens.run(IDS)
        handle.remove()
        model.train()
        with pytest.raises(UnsupportedError, match="dropout"):
            lens.run(IDS)
        model.eval()
        assert torch.equal(lens.run(IDS).logits, plain)


# ---- real weights


@pytest.mark.real_model
def test_smollm2_is_itself() -> None:
    from crosslens.tasks import load_model

    model, tokenizer = load_model("smollm2-135m")
    text = "When Mary and John went to the store, John gave a drink to"
    edits = [scale("blocks.7.attn.z", 0.0, heads=[4]), scale("blocks.20.mlp.out", 2.0, positions=[-1])]
    with PenzaiInspector(model, tokenizer) as lens, HooksInspector(model, tokenizer) as hooks:
        got = lens.run(text, capture=["blocks.*.resid_post", "blocks.3.attn.pattern"], edits=edits)
        want = hooks.run(text, capture=["blocks.*.resid_post", "blocks.3.attn.pattern"], edits=edits)
    assert torch.equal(got.logits.argmax(-1), want.logits.argmax(-1))
    for site in want:
        assert_same(got[site], want[site], site, 1e-4)
    assert_same(got.logits, want.logits, "logits", 1e-4)
