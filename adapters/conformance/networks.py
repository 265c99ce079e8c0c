"""Guarantees 1 and 2 on networks of no known family: `module:` sites of any `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from crosslens.adapters.edits import replace, zero
from crosslens.adapters.errors import CrosslensError, SiteError

from .kit import Check, Context, expect


def checks(context: Context) -> Iterator[Check]:
    """Checks on small networks of no family."""

    def module(what: str, needs: Sequence[str], body: Callable[[Context], None]) -> Check:
        return Check(f"right/module/{what}", "right", tuple(needs), body, context)

    yield module("mlp", ("capture.module", "edit.module", "edit.replace"), _mlp)
    yield module("relu-in-place", ("capture.module",), _relu_in_place)
    yield module("runs-three-times", ("capture.module", "edit.module"), _runs_three_times)
    yield module("tuples-and-dicts", ("capture.module", "edit.module"), _tuples_and_dicts)
    yield module("gradients", ("capture.module", "gradients"), _module_gradients)
    yield module("cnn", ("capture.module", "edit.module", "edit.units"), _cnn)
    yield module("gru", ("capture.module", "edit.module", "edit.zero"), _gru)
    yield module("residual-net", ("capture.module", "edit.module", "gradients"), _residual_net)
    yield module("until", ("capture.module", "until"), _until)


class _Twice(nn.Module):
    """One linear layer that runs three times, and returns a tuple and a dict."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.again = nn.Linear(6, 6, dtype=torch.float64)
        self.pair = _Pair()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for _ in range(3):
            x = self.again(x).tanh()
        left, rest = self.pair(x)
        return {"sum": left + rest["right"], "left": left}


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x * 2, {"right": x * 3}


def _small_mlp(inplace: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [
            nn.Linear(5, 7, dtype=torch.float64),
            nn.ReLU(inplace=inplace),
            nn.Linear(7, 3, dtype=torch.float64),
        ]
    return nn.Sequential(*layers)


X = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(4, 5)


def _mlp(context: Context) -> None:
    model = _small_mlp()
    with context.backend(model) as lens:
        run = lens.run(X, capture=["module:1:output", "module:0:input"])
        hidden = model[0](X).relu()
        assert torch.allclose(run["module:1:output"], hidden, atol=1e-12)
        assert torch.equal(run["module:0:input"], X)
        value = torch.arange(8, dtype=torch.float64).reshape(4, 2)
        edited = lens.run(X, edits=[replace("module:1:output", value, units=[0, 3])])
        hidden[:, [0, 3]] = value
        assert torch.allclose(edited.output, model[2](hidden), atol=1e-12), "an edit of two units did not arrive"


def _relu_in_place(context: Context) -> None:
    model = _small_mlp(inplace=True)
    with context.backend(model) as lens:
        run = lens.run(X, capture=["module:0:output"])
        want = nn.functional.linear(X, model[0].weight, model[0].bias)  # type: ignore[arg-type]
        assert want.min() < 0, "vacuous: nothing for the ReLU to overwrite"
        assert torch.allclose(run["module:0:output"], want, atol=1e-12), "the capture was overwritten in place"


def _runs_three_times(context: Context) -> None:
    model = _Twice()
    with context.backend(model) as lens:
        run = lens.run(X.repeat(1, 2)[:, :6], capture=[f"module:again:output#{i}" for i in range(3)])
        x = X.repeat(1, 2)[:, :6]
        for i in range(3):
            want = model.again(x)
            assert torch.allclose(run[f"module:again:output#{i}"], want, atol=1e-12), f"call {i}"
            x = want.tanh()
        expect(SiteError, lambda: lens.run(X.repeat(1, 2)[:, :6], capture="module:again:output"), "#0")
        expect(SiteError, lambda: lens.run(X.repeat(1, 2)[:, :6], edits=[zero("module:again:output#3")]), "#3")
        edited = lens.run(X.repeat(1, 2)[:, :6], edits=[zero("module:again:output#2")])
        assert not edited.output["sum"].any(), "an edit of the third call did not arrive"


def _tuples_and_dicts(context: Context) -> None:
    model = _Twice()
    x = X.repeat(1, 2)[:, :6]
    plain = model(x)
    with context.backend(model) as lens:
        run = lens.run(x, capture=["module:pair:output[1].right", "module:pair:output[0]", "module:pair:output"])
        assert torch.allclose(run["module:pair:output[0]"] * 1.5, run["module:pair:output[1].right"], atol=1e-12)
        assert torch.equal(run["module:pair:output"][1]["right"], run["module:pair:output[1].right"])
        edited = lens.run(x, edits=[zero("module:pair:output[1].right")])
        assert torch.allclose(edited.output["sum"], plain["left"], atol=1e-12), "an edit inside a tuple did not arrive"
        expect(CrosslensError, lambda: lens.run(x, edits=[zero("module:pair:output")]), "module:pair:output")


def _module_gradients(context: Context) -> None:
    model = _small_mlp()
    with context.backend(model) as lens:
        got = lens.gradients(X, ["module:1:output"], lambda out: out[:, 1])["module:1:output"]
        want = model.get_parameter("2.weight")[1].expand(4, 7)
        assert torch.allclose(got, want, atol=1e-12), "gradient of a linear layer is its weight"


class _ResidualNet(nn.Module):
    """As in torchvision's: convolutions, batch norm, a ReLU in place that both summands pass, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.conv1 = nn.Conv2d(2, 4, 3, padding=1, dtype=torch.float64)
            self.bn1 = nn.BatchNorm2d(4, dtype=torch.float64)
            self.relu = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.conv2(x))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


IMAGES = torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(2, 2, 5, 5)


def _cnn(context: Context) -> None:
    """Rank-4 tensors; a unit is of the last axis."""
    model = _ResidualNet().eval()
    with context.backend(model) as lens, torch.no_grad():
        want = model.conv1(IMAGES)
        run = lens.run(IMAGES, capture="module:conv1:output")
        assert torch.allclose(run["module:conv1:output"], want, atol=1e-12)
        edited = lens.run(IMAGES, edits=[zero("module:conv1:output", units=[0, 4])])
        want[..., [0, 4]] = 0
        x = model.bn1(want).relu()
        want = model.head(model.pool((x + model.conv2(x)).relu()).flatten(1))
        assert torch.allclose(edited.output, want, atol=1e-12), "an edit of two columns did not arrive"


def _gru(context: Context) -> None:
    """A module that returns a tuple of tensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.ModuleDict({"gru": nn.GRU(5, 6, batch_first=True), "head": nn.Linear(6, 2)}).double()
    net = _Recurrent(model)
    x = X.reshape(2, 2, 5)
    with context.backend(net) as lens, torch.no_grad():
        states, last = net.parts["gru"](x)
        run = lens.run(
            x, capture=["module:parts.gru:output[0]", "module:parts.gru:output[1]", "module:parts.head:input"]
        )
        assert torch.allclose(run["module:parts.gru:output[0]"], states, atol=1e-12)
        assert torch.allclose(run["module:parts.gru:output[1]"], last, atol=1e-12)
        assert torch.allclose(run["module:parts.head:input"], states, atol=1e-12)
        edited = lens.run(x, edits=[zero("module:parts.gru:output[0]", positions=[1])])
        states[:, 1] = 0
        assert torch.allclose(edited.output, net.parts["head"](states), atol=1e-12), (
            "an edit of one step did not arrive"
        )


class _Recurrent(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts["head"](self.parts["gru"](x)[0])
        return out


def _residual_net(context: Context) -> None:
    """The ReLU works in place and runs twice; gradients against autograd, statistics of the norm untouched."""
    model = _ResidualNet().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with context.backend(model) as lens:
        with torch.no_grad():
            first = model.bn1(model.conv1(IMAGES)).relu()
            second = (first + model.conv2(first)).relu()
        run = lens.run(IMAGES, capture=["module:relu:output#0", "module:relu:output#1", "module:bn1:output"])
        assert torch.allclose(run["module:relu:output#0"], first, atol=1e-12)
        assert torch.allclose(run["module:relu:output#1"], second, atol=1e-12)
        assert run["module:bn1:output"].min() < 0, "what the norm gave was overwritten in place"
        edited = lens.run(IMAGES, edits=[zero("module:conv2:output")])
        with torch.no_grad():
            assert torch.allclose(edited.output, model.head(model.pool(first).flatten(1)), atol=1e-12)
        got = lens.gradients(IMAGES, "module:pool:output", lambda out: out[:, 2])["module:pool:output"]
        want = model.head.weight[2].detach().reshape(1, 4, 1, 1).expand(2, 4, 1, 1)
        assert torch.allclose(got, want, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _until(context: Context) -> None:
    model = _ResidualNet().eval()
    ran: list[int] = []
    handle = model.head.register_forward_hook(lambda *_: ran.append(1))
    with context.backend(model) as lens:
        run = lens.run(IMAGES, capture="module:conv1:output", until="module:conv2:output")
        assert run.output is None
        assert run["module:conv1:output"].shape == (2, 4, 5, 5)
    handle.remove()
    assert not ran, "what comes after until= has run"
