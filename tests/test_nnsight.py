"""What is special to the nnsight backend; the conformance kit checks what it promises like every other."""

from __future__ import annotations

import contextvars
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention

from crosslens.adapters import InputError, Run, SiteError, UnsupportedError, add, apply, open_inspector, scale, zero
from crosslens.adapters.conformance.models import tiny_model

pytest.importorskip("nnsight")
from nnsight.intervention.interleaver import Interleaver, Mediator

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
EVERYTHING = ["embed", "blocks.*", "final_norm", "logits"]


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", dtype=torch.float64)[0]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Locations at which nnsight has handed a value to one of its mediators, in order."""
    seen: list[str] = []
    original = Mediator.handle

    def handle(self: Any, provider: str, value: Any) -> Any:
        seen.append(provider)
        return original(self, provider, value)

    monkeypatch.setattr(Mediator, "handle", handle)
    return seen


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each forward that nnsight has begun."""
    begun: list[None] = []
    original = Interleaver.__enter__

    def enter(self: Any) -> Any:
        begun.append(None)
        return original(self)

    monkeypatch.setattr(Interleaver, "__enter__", enter)
    return begun


def equal(a: Run, b: Run) -> bool:
    return list(a) == list(b) and all(torch.equal(a[site], b[site]) for site in a)


def test_values_come_from_nnsight_and_no_hook_fires(model: Any, served: list[str]) -> None:
    running: list[nn.Module] = []
    hooked: list[nn.Module] = []

    def look(x: Tensor) -> Tensor:
        running.extend(lens._plain.env._module.modules())
        hooked.extend(m for m in running if m._forward_hooks or m._forward_pre_hooks)
        return x

    with open_inspector("nnsight", model) as lens:
        sites = ["blocks.2.mlp.post", "blocks.0.resid_pre", "module:model.layers.1.mlp:output"]
        lens.run(IDS, capture=sites, edits=[apply("blocks.1.attn.z", look)])
    assert len(running) == len(list(model.modules()))
    assert not hooked
    assert served == [
        "model.model.layers.0.input",
        "model.model.layers.1.self_attn.o_proj.input",
        "model.model.layers.1.mlp.output",
        "model.model.layers.2.mlp.down_proj.input",
    ]


def test_the_callers_modules_are_not_wrapped_and_share_their_weights(model: Any) -> None:
    wrapped: list[str] = []

    def look(x: Tensor) -> Tensor:
        wrapped.extend(n for n, m in model.named_modules() if {"forward", "__nnsight__"} & vars(m).keys())
        return x

    with open_inspector("nnsight", model) as lens:
        lens.run(IDS, capture="blocks.0.attn.pattern", edits=[apply("blocks.1.resid_post", look)])
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.zero_()
        assert not lens.run(IDS, capture="blocks.1.mlp.out")["blocks.1.mlp.out"].any()
        for inner in (lens._plain, lens._sourced):
            mine = {tensor.data_ptr() for tensor in inner.env._module.state_dict().values()}
            assert mine == {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not wrapped


def test_each_call_of_a_module_is_served() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(3, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.step(x)
            return x

    net, x = Loop(), torch.randn(2, 3)
    with open_inspector("nnsight", net) as lens, torch.no_grad():
        sites = [f"module:step:{side}#{call}" for call in (2, 0, 1) for side in ("output", "input")]
        run = lens.run(x, capture=sites, edits=[add("module:step:output#1", torch.ones(2, 3))])
        first = net.step(x)
        second = net.step(first) + 1
        wanted = [net.step(second), second, first, x, second, first]
        assert [torch.equal(run[site], value) for site, value in zip(sites, wanted, strict=True)] == [True] * 6
        assert torch.equal(run.output, wanted[0])
        for nothing in ({"edits": [zero("module:unused:output")]}, {"capture": "module:unused:input"}):
            with pytest.raises(SiteError, match=r"'module:unused:\w+' did not run"):
                lens.run(x, **nothing)
        assert torch.equal(lens.run(x).output, net(x))


def test_native_addresses_are_nnsights_own(model: Any) -> None:
    attention = "native:model.layers.1.self_attn"
    with open_inspector("nnsight", model) as lens:
        run = lens.run(
            IDS,
            capture=[
                "native:model.layers.1.mlp.output",
                "native:lm_head.input",
                f"{attention}.source.attention_interface_1.output",
                f"{attention}.source.attention_interface_1.source.repeat_kv_1.output",
                "native:source.self_lm_head_0.output",
                *EVERYTHING,
            ],
        )
        assert torch.equal(run["native:model.layers.1.mlp.output"], run["blocks.1.mlp.out"])
        assert torch.equal(run["native:lm_head.input"], run["final_norm"])
        assert torch.equal(run[f"{attention}.source.attention_interface_1.output"][0], run["blocks.1.attn.z"])
        assert torch.equal(run["native:source.self_lm_head_0.output"], run["logits"])
        repeated = run[f"{attention}.source.attention_interface_1.source.repeat_kv_1.output"]  # (batch, head, pos, d)
        assert torch.equal(repeated.transpose(1, 2)[:, :, ::2], run["blocks.1.attn.v"])
        native = lens.run(IDS, capture=EVERYTHING, edits=[scale("native:model.layers.1.mlp.output", 2.0)])
        assert equal(native, lens.run(IDS, capture=EVERYTHING, edits=[scale("blocks.1.mlp.out", 2.0)]))
        inner = [scale(f"{attention}.source.self_o_proj_0.output", 2.0)]
        assert equal(
            lens.run(IDS, capture="blocks.2.*", edits=inner),
            lens.run(IDS, capture="blocks.2.*", edits=[scale("blocks.1.attn.out", 2.0)]),
        )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("model.layers.9.mlp.output", "no module 'model.layers.9.mlp'; nearest: 'model.layers.2.mlp'"),
        ("model.layers.1.mlp.outputs", "ends in .input or .output"),
        ("model.config.output", "no module 'model.config'"),
        ("model.layers.1.self_attn.source.o_proj.output", "has no operation 'o_proj'; nearest: 'self_o_proj_0'"),
    ],
)
def test_a_wrong_native_address_is_refused_before_the_model_runs(
    model: Any, forwards: list[None], address: str, said: str
) -> None:
    with open_inspector("nnsight", model) as lens, pytest.raises(SiteError) as caught:
        lens.run(IDS, capture=f"native:{address}")
    assert f"native:{address}" in str(caught.value)
    assert said in str(caught.value)
    assert not forwards


def test_a_wrong_operation_of_a_called_function_is_refused_cleanly(model: Any) -> None:
    call = "native:model.layers.1.self_attn.source.attention_interface_1.source"
    with open_inspector("nnsight", model) as lens:
        with pytest.raises(SiteError, match=r"has no operation 'softmax'; nearest: .*softmax_0"):
            lens.run(IDS, capture=["blocks.0.attn.pattern", f"{call}.softmax.output"])
        run = lens.run(IDS, capture="blocks.1.attn.pattern")
        assert (run["blocks.1.attn.pattern"].sum(-1) - 1).abs().max() < 1e-6


def test_the_pattern_is_read_inside_the_attention_function(model: Any, served: list[str]) -> None:
    implementations: list[str] = []

    def look(x: Tensor) -> Tensor:
        implementations.append(model.config._attn_implementation)
        return x

    with open_inspector("nnsight", model) as lens:
        plain = lens.run(IDS, capture="blocks.1.attn.z")
        run = lens.run(IDS, capture="blocks.1.attn.pattern", edits=[apply("blocks.1.resid_pre", look)])
        path = "model.model.layers.1.self_attn.source.attention_interface_1.source.nn_functional_softmax_0.output"
        assert served.count(path) == 1
        assert run["blocks.1.attn.pattern"].dtype == torch.float64
        zeroed = lens.run(IDS, capture="blocks.1.attn.z", edits=[zero("blocks.1.attn.pattern", heads=[2])])
        assert not zeroed["blocks.1.attn.z"][:, :, 2].any()
        assert equal(plain, lens.run(IDS, capture="blocks.1.attn.z"))  # not eager any more
        attention = {inner: inner.env._module.model.layers[1].self_attn for inner in (lens._plain, lens._sourced)}
        assert [vars(module)["__nnsight__"].sourced for module in attention.values()] == [False, True]
    assert implementations == ["sdpa"]


def test_the_attention_implementation_is_the_callers_of_the_moment(model: Any) -> None:
    with open_inspector("nnsight", model) as lens:
        weights = "module:model.layers.1.self_attn:output[1]"
        assert lens.run(IDS, capture=weights)[weights] is None
        model.set_attn_implementation("eager")
        run = lens.run(IDS, capture=[weights, "blocks.1.attn.pattern"])
        assert torch.equal(run[weights], run["blocks.1.attn.pattern"])
        model.set_attn_implementation("sdpa")
        assert lens.run(IDS, capture=weights)[weights] is None


def test_unknown_attention_code_is_refused_before_the_model_runs(model: Any, forwards: list[None]) -> None:
    class Other(LlamaAttention):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return self.o_proj(self.q_proj(hidden_states)), None

    model.model.layers[1].self_attn.__class__ = Other
    with open_inspector("nnsight", model) as lens:
        with pytest.raises(UnsupportedError, match=r"layers\.1\.self_attn.*attention_interface.*self_q_proj_0"):
            lens.run(IDS, capture="blocks.*.attn.pattern")
        assert not forwards
        assert lens.run(IDS, capture="blocks.1.attn.z")["blocks.1.attn.z"].shape == (2, 5, 4, 8)


def test_a_forward_inside_a_forward_needs_a_second_inspector(model: Any) -> None:
    with open_inspector("nnsight", model) as lens, open_inspector("nnsight", model) as second:
        before = lens.run(IDS, capture=["blocks.0.resid_post", "logits"])

        def again(x: Tensor, inside: Any) -> Tensor:
            return x + inside.run(IDS, capture="blocks.0.resid_post")["blocks.0.resid_post"]

        with pytest.raises(InputError, match="second inspector"):
            lens.run(IDS, edits=[apply("blocks.1.resid_post", lambda x: again(x, lens))])
        nested = lens.run(IDS, capture="logits", edits=[apply("blocks.1.resid_post", lambda x: again(x, second))])
        added = lens.run(IDS, capture="logits", edits=[add("blocks.1.resid_post", before["blocks.0.resid_post"])])
        assert equal(nested, added)
        assert equal(before, lens.run(IDS, capture=list(before)))


def test_an_edit_sees_the_callers_context_variables(model: Any) -> None:
    """nnsight runs edits in greenlets, which by themselves start with none."""
    variable = contextvars.ContextVar("variable", default="default")
    seen: list[str] = []

    def look(x: Tensor) -> Tensor:
        seen.append(variable.get())
        return x

    variable.set("set")
    with open_inspector("nnsight", model) as lens:
        lens.run(IDS, edits=[apply("embed", look), apply("module:lm_head:output", look)])
    assert seen == ["set", "set"]


def test_submodules_of_a_fused_encoder_run() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with open_inspector("nnsight", net) as lens:
        run = lens.run(x, capture=["module:layers.1.linear2:output", "module:layers.1.norm2:input"])
        residual, out = run["module:layers.1.norm2:input"], run["module:layers.1.linear2:output"]
        torch.testing.assert_close(net.layers[1].norm2(residual), net(x))
        zeroed = lens.run(x, capture=list(run), edits=[zero("module:layers.1.linear2:output")])
        torch.testing.assert_close(zeroed["module:layers.1.norm2:input"], residual - out)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("error")
def test_submodules_may_have_names_of_nnsight() -> None:
    net = nn.Sequential()
    for name in ("output", "input", "source", "skip", "get", "trace"):
        net.add_module(name, nn.Linear(2, 2))
    x = torch.randn(1, 2)
    with open_inspector("nnsight", net) as lens, open_inspector("hooks", net) as hooks:
        sites = [f"module:{name}:output" for name, _ in net.named_children()]
        assert equal(lens.run(x, capture=sites), hooks.run(x, capture=sites))
    net.add_module("path", nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="'path'"):
        open_inspector("nnsight", net)


SCRIPT = """
import sys
if "before" in sys.argv:
    import nnsight
import torch
backward = torch.Tensor.backward
mounted = hasattr(object, "save")
from torch import nn
from crosslens.adapters import open_inspector, zero
net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(4, 2)
with open_inspector("nnsight", net) as lens:
    run = lens.run(x, capture="module:0:output", edits=[zero("module:1:output")])
assert "nnsight" in sys.modules
assert torch.equal(run["module:0:output"], net[0](x))
assert torch.equal(run.output, net[2].bias.expand(4, 2))
assert torch.Tensor.backward is backward
assert hasattr(object, "save") is mounted is ("before" in sys.argv)
"""


@pytest.mark.parametrize("argument", ["first", "before"])
def test_the_process_is_as_it_was_and_no_source_is_needed(argument: str) -> None:
    """From standard input, where nnsight's own `with model.trace()` finds no source to read."""
    done = subprocess.run([sys.executable, "-", argument], input=SCRIPT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
