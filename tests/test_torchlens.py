"""The torchlens backend: that it is torchlens that runs, that its traps reach nobody, and what only it does."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import BaseModelOutput

from crosslens.adapters import EditError, Inspector, Run, SiteError, UnsupportedError, add, apply, replace, scale, zero
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector

torchlens = pytest.importorskip("torchlens")

runtime = pytest.importorskip("torchlens.intervention.runtime")
TorchLensInspector = pytest.importorskip("crosslens.adapters.torchlens").TorchLensInspector

FAMILIES = ("llama", "gpt2", "gpt_neox")
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
X = torch.linspace(-2, 2, 12).reshape(2, 6)


def model_of(family: str, dtype: torch.dtype = torch.float64, attention: str = "eager") -> Any:
    return tiny_model(family, dtype=dtype, attn_implementation=attention)[0]


def opened(model: nn.Module) -> Inspector:
    return TorchLensInspector(model)


@pytest.fixture
def fired(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels at which torchlens has run one of its live interventions, in order."""
    labels: list[str] = []
    original = runtime._execute_hook

    def execute(hook: Any, out: Tensor, context: Any, **more: Any) -> Any:
        labels.append(context.layer_log["label"])
        return original(hook, out, context, **more)

    monkeypatch.setattr(runtime, "_execute_hook", execute)
    return labels


class Functional(nn.Module):
    """Operations that belong to no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)).contiguous()
        left, right = x.chunk(2, -1)
        out: Tensor = self.last(torch.cat([left * 2, right], -1).tanh_())
        return out


# ---- it is torchlens


def test_every_site_comes_from_a_live_intervention_of_torchlens(fired: list[str]) -> None:
    model = model_of("llama")
    wrapped: list[str] = []

    def look(x: Tensor) -> Tensor:
        wrapped.extend(name for name, module in model.named_modules() if "forward" in vars(module))
        return x

    with opened(model) as lens:
        for module in model.modules():  # hooks of after the opening belong to the caller's model, which never runs
            module.register_forward_hook(lambda *_: pytest.fail("the caller's own modules ran"))
        lens.run(IDS)
        assert not fired, "nothing is asked for, nothing is done"
        lens.run(IDS, capture=["blocks.1.*", "native:silu_2"], edits=[apply("blocks.1.attn.z", look)])
    block = "model.model.layers.1"
    labels = [label for label in fired if label.startswith("model.")]
    assert labels == [
        *(f"{block}.self_attn.{part}_proj:1" for part in "qkv"),
        f"{block}.self_attn:1",
        f"{block}.self_attn:1",  # the tensor and the pattern
        f"{block}.mlp:1",
        f"{block}:1",
    ]
    assert [label for label in fired if label.startswith("tap")] == [f"tap:{call}" for call in range(1, 5)]
    operations = [label for label in fired if not label.startswith(("model.", "tap"))]
    assert [label.partition("_")[0] for label in operations] == ["to", "silu"], "the cast after softmax, and the label"
    assert not wrapped


def test_agrees_with_a_trace_of_torchlens_itself() -> None:
    model = model_of("gpt2", torch.float32)
    with opened(model) as lens, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = torchlens.trace(model, IDS, {"use_cache": False})  # of the caller's own, beside an open inspector
        run = lens.run(IDS, capture=["blocks.1.resid_post", "blocks.1.attn.pattern", "native:softmax_2"])
    assert torch.equal(run["blocks.1.resid_post"], trace["transformer.h.1"].out)
    assert torch.equal(run["blocks.1.attn.pattern"], trace["softmax_2"].out)
    assert torch.equal(run["native:softmax_2"], run["blocks.1.attn.pattern"])


def test_until_is_torchlens_halting() -> None:
    ran: list[str] = []
    model = model_of("llama")
    for name in ("0", "1", "2"):  # before the opening: they fire on the shadow
        model.get_submodule(f"model.layers.{name}.mlp").register_forward_hook(lambda *_, name=name: ran.append(name))
    with opened(model) as lens:
        run = lens.run(IDS, capture=["blocks.1.attn.z"], until="blocks.1.attn.out")
        assert run.output is None
        assert ran == ["0"]
        whole = lens.run(IDS, capture=["blocks.1.attn.z"])
        assert torch.equal(run["blocks.1.attn.z"], whole["blocks.1.attn.z"])
        assert ran == ["0", "0", "1", "2"]


# ---- the traps of torchlens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_seed_same_dropout_as_the_plain_model_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    with opened(model) as lens:
        plain = lens.run(IDS).logits
        assert torch.equal(plain, model(IDS).logits)
        model.train()  # after the opening
        seen = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            seen.append(
                lens.run(IDS, capture=["blocks.*.resid_mid" if family != "gpt_neox" else "blocks.*.mlp.out"]).logits
            )
            assert torch.equal(seen[-1], model(IDS).logits), "the same random state draws the same dropout"
        assert torch.equal(seen[0], seen[2])
        assert not torch.equal(seen[0], seen[1])


def test_an_edit_that_torchlens_would_drop_is_refused() -> None:
    model = Functional()
    with opened(model) as lens:
        site = "native:contiguous_1"  # gives back the very tensor it got
        assert torch.equal(lens.run(X, capture=site)[site], F.relu(model.first(X)))
        with pytest.raises(UnsupportedError, match=r"contiguous_1.*Refused"):
            lens.run(X, edits=[zero(site)])
        with torch.no_grad():
            assert torch.equal(lens.run(X).output, model(X))


def test_an_edit_that_would_turn_a_model_output_into_a_dict_is_refused() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=x * 2)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x).last_hidden_state + 1

    with opened(Outer()) as lens:
        run = lens.run(X, capture=["module:inner:output", "module:inner:output.last_hidden_state"])
        assert isinstance(run["module:inner:output"], BaseModelOutput)
        assert torch.equal(run["module:inner:output.last_hidden_state"], X * 2)
        with pytest.raises(UnsupportedError, match=r"inner:output\.last_hidden_state.*BaseModelOutput.*plain dict"):
            lens.run(X, edits=[zero("module:inner:output.last_hidden_state")])
        assert not lens.run(X, edits=[zero("module:inner:input")], capture=["module:inner:input"])[
            "module:inner:input"
        ].any()


def test_no_warning_of_torchlens_reaches_the_user() -> None:
    model = model_of("llama", attention="sdpa")
    with warnings.catch_warnings(), opened(model) as lens:
        warnings.simplefilter("error")
        lens.run(IDS, capture=["blocks.*", "native:add_1"])
        lens.generate(IDS, max_new_tokens=2)
        with pytest.raises(EditError, match=r"blocks\.0\.mlp\.out"):
            lens.run(IDS, edits=[apply("blocks.0.mlp.out", lambda part: None)])  # type: ignore[arg-type,return-value]


def test_one_forward_at_a_time_and_other_backends_inside() -> None:
    model = Functional()
    wanted = HooksInspector(model).run(X).output
    said: list[str] = []

    def inside(part: Tensor) -> Tensor:
        with (
            opened(model) as another,
            HooksInspector(model) as hooks,
        ):  # closing it leaves the wrappers of the outer run
            with pytest.raises(UnsupportedError, match=r"nested.*one forward at a time"):
                another.run(X)
            assert torch.equal(hooks.run(X).output, wanted)
        said.append("ran")
        return part * 2

    with opened(model) as lens:
        run = lens.run(X, capture=["native:tanh_1"], edits=[apply("native:relu_1", inside)])
        assert torch.equal(
            run["native:tanh_1"],
            lens.run(X, capture="native:tanh_1", edits=[scale("native:relu_1", 2)])["native:tanh_1"],
        )
    assert said == ["ran"]


def test_closing_takes_the_wrappers_off_torch_and_lets_the_model_go() -> None:
    functions = {name: getattr(F, name) for name in ("softmax", "relu", "linear")}
    model: Any = model_of("gpt2")
    first, second = opened(model), opened(model)
    first.run(IDS)
    assert F.softmax is not functions["softmax"], "vacuous: torchlens wraps no more"
    first.close()
    assert {name: getattr(F, name) for name in functions} == functions
    with HooksInspector(model) as hooks:
        site = "blocks.1.attn.pattern"
        assert torch.equal(second.run(IDS, capture=site)[site], hooks.run(IDS, capture=site)[site])
    second.close()
    assert {name: getattr(F, name) for name in functions} == functions
    gone = weakref.ref(model)
    del model, first, second, hooks
    gc.collect()
    assert gone() is None


# ---- what only torchlens does


def test_operations_that_belong_to_no_module(fired: list[str]) -> None:
    model = Functional()
    with opened(model) as lens, torch.no_grad():
        sites = ["relu_1", "chunk_1", "chunk_2", "mul_1", "cat_1", "tanh_1", "linear_2", "first:1", "last:1"]
        run = lens.run(X, capture=[f"native:{site}" for site in sites])
        hidden = F.relu(model.first(X))
        mixed = torch.cat([hidden[:, :3] * 2, hidden[:, 3:]], -1)
        out = model.last(mixed.tanh())
        wanted = [
            hidden,
            hidden[:, :3],
            hidden[:, 3:],
            hidden[:, :3] * 2,
            mixed,
            mixed.tanh(),
            out,
            model.first(X),
            out,
        ]
        for site, value in zip(sites, wanted, strict=True):
            assert torch.equal(run[f"native:{site}"], value), site
        numbered = f"native:{fired[fired.index(next(f for f in fired if f.startswith('mul_1_')))].removesuffix('_raw')}"
        assert torch.equal(lens.run(X, capture=numbered)[numbered], hidden[:, :3] * 2)
        value = torch.full((2, 3), 0.5)
        edited = lens.run(
            X, capture=["native:cat_1"], edits=[replace("native:chunk_2", value), scale("native:mul_1", 3)]
        )
        assert torch.equal(edited["native:cat_1"], torch.cat([hidden[:, :3] * 6, value], -1))
        in_place = lens.run(X, edits=[add("native:tanh_1", torch.ones(2, 6))])
        assert torch.equal(in_place.output, model.last(mixed.tanh() + 1))


def test_gradients_at_operations() -> None:
    class Halves(Functional):
        def forward(self, x: Tensor) -> Tensor:
            left, right = F.relu(self.first(x)).contiguous().chunk(2, -1)
            out: Tensor = self.last(torch.cat([left * 2, right.sigmoid() + left.square()], -1) + 1)
            return out.tanh_()

    def metric(out: Tensor) -> Tensor:
        return out[:, 1]

    model = Halves()
    sites = ["native:relu_1", "native:chunk_2", "native:square_1", "module:first:output"]
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with opened(model) as lens:
            got = lens.gradients(X, sites, metric, edits=[scale("native:mul_1", 0.5)])
            hidden = F.relu(model.first(X)).detach().requires_grad_()
            right = hidden[:, 3:].detach().requires_grad_()
            square = hidden[:, :3].square().detach().requires_grad_()
            mixed = torch.cat([hidden[:, :3], right.sigmoid() + square], -1) + 1
            wanted = torch.autograd.grad(metric(model.last(mixed).tanh()).sum(), [right, square])
            torch.testing.assert_close(got["native:chunk_2"], wanted[0])
            torch.testing.assert_close(got["native:square_1"], wanted[1])
            torch.testing.assert_close(got["module:first:output"], got["native:relu_1"] * (hidden > 0))
            assert wanted[0].any()
    with opened(model.requires_grad_()) as lens:
        for label in ("tanh_1", "contiguous_1"):  # torchlens shows a copy of these, which no gradient reaches
            with pytest.raises(UnsupportedError, match=f"gradient at 'native:{label}'"):
                lens.gradients(X, f"native:{label}", metric)


def test_labels_are_checked() -> None:
    model = Functional()
    with opened(model) as lens:
        for label, says in (
            ("relu", "native:softmax_2"),
            ("first.output", "native:softmax_2"),
            ("frist:1", "'first'"),
            ("relu_2", "'relu_1'"),
            ("first:2", "no such label"),
        ):
            for what in ({"capture": f"native:{label}"}, {"edits": [zero(f"native:{label}")]}):
                with pytest.raises(SiteError, match=f"native:{label}.*{says}"):
                    lens.run(X, **what)  # type: ignore[arg-type]
    with opened(model_of("llama")) as lens:
        assert lens.native_address("blocks.1.mlp.out") == "model.layers.1.mlp:1"
        for site in ("blocks.1.attn.z", "blocks.1.attn.q", "blocks.1.attn.pattern", "blocks.1.resid_pre"):
            with pytest.raises(SiteError, match=site):
                lens.native_address(site)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_patterns_are_what_the_softmax_gives_in_the_dtype_of_the_model(dtype: torch.dtype, attention: str) -> None:
    model, site = model_of("llama", dtype, attention), "blocks.1.attn.pattern"
    with opened(model) as lens, HooksInspector(model) as hooks:
        for edits in ([], [scale(site, 2.0, heads=[1])]):
            got, want = (one.run(IDS, capture=["blocks.*.attn.pattern"], edits=edits) for one in (lens, hooks))
            assert got[site].dtype == dtype
            assert equal(got, want)
            assert torch.equal(got.logits, want.logits)
        assert model.config._attn_implementation == attention


# ---- any module


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)
        self.lstm = nn.LSTM(6, 6)

    def forward(self, x: Tensor) -> Any:
        h = x * 0
        for _ in range(3):
            h = self.cell(x, h)
        return self.lstm(h[None])


class Tied(nn.Module):
    """torchlens and PyTorch call the shared layer by different names."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(6, 6)
        self.deep = nn.Sequential(nn.Sequential(layer), nn.ReLU(inplace=True))
        self.shallow = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shallow(self.deep(x))
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Identity()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> list[Any]:
        return [F.relu(self.skip(x) + self.norm(input=self.drop(x))), None, (x,)]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten()
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.TransformerEncoder(layer, 2))


@pytest.mark.parametrize(
    ("make", "sites", "edited"),
    [
        (Loop, ["module:cell:output#2", "module:cell:input#1", "module:lstm:output"], "module:cell:output#1"),
        (Loop, ["module::output", "module:lstm:output[1][0]", "module::input"], "module:lstm:output[1][1]"),
        (
            Tied,
            ["module:deep.0.0:output#1", "module:deep.0.0:input#1", "module:deep:output"],
            "module:deep.0.0:output#0",
        ),
        (Residual, ["module::output", "module:norm:input", "module:skip:output"], "module:drop:output"),
        (Residual, ["module:skip:input", "module:norm:output"], "module:norm:input"),
        (convolutional, ["module:*:output", "module:*:input"], "module:2:output"),
        (encoder, ["module:1.layers.0.linear1:output", "module:1.layers.1:output"], "module:1.layers.0.linear1:output"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_any_module(make: Callable[[], nn.Module], sites: list[str], edited: str) -> None:
    model = make().eval()
    with opened(model) as lens, HooksInspector(model) as hooks:
        for edits in ([], [scale(edited, 3.0)]):
            got, want = (one.run(X, capture=sites, edits=edits) for one in (lens, hooks))
            torch.testing.assert_close(dict(got), dict(want))
            torch.testing.assert_close(got.output, want.output)
        plain = tree_leaves(hooks.run(X).output)
    assert any(not torch.equal(a, b) for a, b in zip(tree_leaves(got.output), plain, strict=True) if a is not None), (
        "vacuous: the edit does nothing"
    )


def test_statistics_of_a_training_model_move_as_in_a_plain_forward() -> None:
    model, plain = convolutional().train(), convolutional().train()
    plain.load_state_dict(model.state_dict())
    with opened(model) as lens:
        lens.run(X, capture="module:2:output")
    plain(X)
    own, wanted = model.state_dict(), plain.state_dict()
    assert wanted["2.num_batches_tracked"] == 1
    assert all(torch.equal(own[name], value) for name, value in wanted.items())


def equal(a: Run, b: Run) -> bool:
    return list(a) == list(b) and all(torch.equal(a[site], b[site]) for site in a)
