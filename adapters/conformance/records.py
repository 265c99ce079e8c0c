"""`record`: key figures of training steps equal their definition, and the training does not notice.

The figures are computed here by numpy from tensors that the check made itself, without hooks; gradients by
`torch.autograd.grad` or, in a model family, by the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosslens.adapters.errors import ClosedError, CrosslensError, InputError, SiteError
from crosslens.adapters.hooks import HooksInspector

from .kit import FAMILIES, Check, Context, Promise, Scene, expect
from .networks import _Twice
from .right import sites_of

Figures = dict[tuple[str, str], float]
"""(kpi, aggregate) -> value."""

CATEGORIES = ("easy", "race: black", "любой", "any_value", "__x", "a/b\n")


def networks(context: Context) -> Iterator[Check]:
    """Checks on small networks of no family."""
    for promise, what, needs, body in _NETWORKS:
        yield Check(f"{promise}/record/{what}", promise, ("record", *needs), body, context)


def checks(context: Context, families: Sequence[str]) -> Iterator[Check]:
    """A step of the tiny model of each family, by canonical sites."""
    for family in families:
        scene = Scene(family, torch.float64)
        bodies = [("walk", _walk), *([("figures", _family)] if family in FAMILIES else [])]
        for what, body in bodies:
            yield Check(f"right/record/{what}/{scene.id}", "right", ("record",), partial(body, scene=scene), context)


# ---- what is right


def by_hand(tensor: Tensor) -> Figures:
    """Key figures of a tensor (batch, ...) by definition: first over all axes of each sample, then over samples."""
    x = tensor.detach().double().numpy().reshape(len(tensor), -1)
    kpis = {
        "mean": x.mean(1),
        "abs_mean": np.abs(x).mean(1),
        "std": x.std(1, ddof=1) if x.shape[1] > 1 else np.zeros(len(x)),
        "abs_max": np.abs(x).max(1),
    }
    found = {}
    for kpi, value in kpis.items():
        found[kpi, "batch_mean"] = float(value.mean())
        found[kpi, "batch_std"] = float(value.std(ddof=1)) if len(value) > 1 else float("nan")
        found[kpi, "batch_abs_max"] = float(np.abs(value).max())
    return found


def of_whole(tensor: Tensor) -> Figures:
    """Key figures of a tensor without a batch, such as a parameter."""
    return {(kpi, "whole"): value for (kpi, of), value in by_hand(tensor[None]).items() if of == "batch_mean"}


def recorded(table: Any, step: int, kind: str, site: str, call: int = 0) -> Figures:
    """What a recording holds of one tensor; empty where it holds nothing."""
    rows = table[(table.step == step) & (table.kind == kind) & (table.site == site) & (table.call == call)]
    assert not rows.duplicated(["kpi", "aggregate", "sample"]).any(), f"{kind} {site}: two figures of one name"
    return {(row.kpi, row.aggregate): row.value for row in rows.itertuples()}


def assert_same(got: Figures, want: Figures, what: str, noise: float = 1e-10) -> None:
    """The same figures under the same names; NaN where it is due."""
    assert got.keys() == want.keys(), f"{what}: figures {sorted(got)}, must be {sorted(want)}"
    scale = max(abs(value) for value in want.values() if value == value)
    for name, value in want.items():
        off = abs(got[name] - value)
        assert off <= noise * scale or (value != value and got[name] != got[name]), (
            f"{what}: {' of '.join(reversed(name))} is {got[name]:.12g}, must be {value:.12g}"
        )


# ---- networks


class _Net(nn.Module):
    """What a recorder can stumble on: work in place, dropout, a frozen part, an unused part, tuples, integers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.embed = nn.Embedding(11, 6, dtype=torch.float64)
            self.first = nn.Linear(6, 9, dtype=torch.float64)
            self.unused = nn.Linear(4, 4, dtype=torch.float64)
            self.last = nn.Linear(3, 2, dtype=torch.float64)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.split = _Split()
        self.embed.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        a, b, c = self.split(self.dropout(self.relu(self.first(self.embed(ids)))))
        out: Tensor = self.last(a + 2 * b + 0 * c.detach())
        return out


class _Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = x.chunk(3, -1)  # one node of the graph makes all three
        return a, b, c


IDS = torch.arange(20).reshape(4, 5) % 11


def _loss(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).pow(2).sum()


def _by_autograd(model: _Net) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Site -> tensor and gradient, from the forward written out."""
    x = model.embed(IDS)
    pre = nn.functional.linear(x, model.first.weight, model.first.bias)
    post = pre.clamp_min(0)
    a, b, c = post.chunk(3, -1)
    out = nn.functional.linear(a + 2 * b, model.last.weight, model.last.bias)
    values = {"embed:output": x, "first:output": pre, "relu:output": post, "split:input": post}
    values |= {"split:output[0]": a, "split:output[1]": b, "split:output[2]": c, "last:output": out}
    wanted = {name: value for name, value in values.items() if name not in ("embed:output", "split:output[2]")}
    grads = torch.autograd.grad(_loss(out), [*wanted.values(), *model.first.parameters()], allow_unused=True)
    named = [f"module:{name}" for name in wanted] + ["parameter:first.weight", "parameter:first.bias"]
    return ({f"module:{name}": value for name, value in values.items()},
            {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None})  # fmt: skip


def _figures(context: Context) -> None:
    model = _Net()
    values, grads = _by_autograd(model)
    with context.backend(model) as lens, lens.record(["module:*:output", "module:split:input"]) as recording:
        for category in CATEGORIES:
            with recording.step(category) as step:
                loss = _loss(model(IDS))
                step.loss(loss, "squares")
                torch.autograd.backward(loss)
        table = recording.table()
    names = dict(zip(table.step, table.category, strict=True))
    assert names == dict(enumerate(CATEGORIES)), f"the categories came back as {names}"
    for number in (0, len(CATEGORIES) - 1):
        for site, value in values.items():
            assert_same(recorded(table, number, "activation", site), by_hand(value), f"activation at {site}")
        for site, grad in grads.items():
            want = of_whole(grad) if site.startswith("parameter:") else by_hand(grad)
            assert_same(recorded(table, number, "gradient", site), want, f"gradient at {site}")
        want = of_whole(model.first.weight)
        assert_same(recorded(table, number, "parameter", "parameter:first.weight"), want, "parameter first.weight")
        assert_same(recorded(table, number, "loss", "squares"), {("value", "whole"): loss.item()}, "loss")
        for site in ("module:embed:output", "module:split:output[2]", "parameter:embed.weight",
                     "parameter:unused.weight"):  # fmt: skip
            got = recorded(table, number, "gradient", site)
            assert not got, f"{site} got no gradient, and {got} is recorded as one"
    unused = of_whole(model.unused.bias)
    assert_same(recorded(table, 0, "parameter", "parameter:unused.bias"), unused, "parameter unused.bias")


def _unchanged(context: Context) -> None:
    plain, watched = _Net(0.4), _Net(0.4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        want = _train(plain, None)
        after = torch.get_rng_state()
        torch.manual_seed(3)
        with context.backend(watched) as lens, lens.record(["module:*:output", "module:*:input"]) as recording:
            got = _train(watched, recording)
        assert torch.equal(torch.get_rng_state(), after), "recording moved the random state"
    assert got == want, "recording changed the losses"
    for name, parameter in plain.named_parameters():
        assert torch.equal(watched.get_parameter(name), parameter), f"recording changed the training of {name}"
        assert watched.get_parameter(name).requires_grad == parameter.requires_grad, f"{name} was unfrozen or frozen"


def _train(model: _Net, recording: Any) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    found = []
    for number in range(5):
        optimizer.zero_grad()
        if recording is None:
            loss = _loss(model(IDS))
            torch.autograd.backward(loss)
        else:
            with recording.step("odd" if number % 2 else "even") as step:
                loss = _loss(model(IDS))
                step.loss(loss)
                torch.autograd.backward(loss)
        optimizer.step()
        found.append(loss.item())
    return found


def _inputs(context: Context) -> None:
    model = nn.Sequential(nn.Linear(5, 7, dtype=torch.float64), nn.ReLU(inplace=True))
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(4, 5)
    leaf = x.clone().requires_grad_()
    before = deepcopy(x.__dict__)
    seen: list[Tensor] = []
    with context.backend(model) as lens, lens.record(["module:0:input", "module:0:output"]) as recording:
        for given in (x, x, leaf, leaf):
            with recording.step("all"):
                torch.autograd.backward(model(given).sum())
                seen += [] if given.grad is None else [given.grad.clone()]
        table = recording.table()
    assert not x.requires_grad, "the caller's input was made to require a gradient"
    assert x.grad is None and x.__dict__ == before, "something was left on the caller's input"
    assert not leaf._backward_hooks, "a hook was left on the caller's input"
    once = by_hand(seen[0])
    assert not recorded(table, 0, "gradient", "module:0:input"), "the input has no gradient"
    for number in (2, 3):  # the caller's own .grad adds up over both steps; each step's gradient is its own
        assert_same(
            recorded(table, number, "gradient", "module:0:input"), once, f"gradient of the input, step {number}"
        )


def _odd_tensors(context: Context) -> None:
    class Odd(nn.Module):
        def forward(self, ids: Tensor, image: Tensor) -> dict[str, Any]:
            return {"ids": ids, "none": None, "image": image.half() * 3, "mask": ids > 4, "row": image.mean((1, 2, 3))}

    image = torch.linspace(-1, 3, 2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    ids = torch.tensor([[3, 5, 2**40], [7, 0, 1]])
    model = Odd()
    with context.backend(model) as lens, lens.record("module::output", parameters=False) as recording:
        with recording.step("odd"):
            out = model(ids, image)
        with torch.inference_mode(), recording.step("odd"):
            model(ids, image)
        table = recording.table()
    for number in (0, 1):
        for key in ("ids", "image", "mask", "row"):
            got = recorded(table, number, "activation", f"module::output.{key}")
            assert_same(got, by_hand(out[key]), key, 1e-6 if out[key].is_floating_point() else 1e-12)


def _one_sample(context: Context) -> None:
    model = nn.Linear(3, 1)
    with context.backend(model) as lens, lens.record("module::output") as recording:
        with recording.step("one"):
            out = model(torch.ones(1, 3))
        table = recording.table()
    got = recorded(table, 0, "activation", "module::output")
    assert got["mean", "batch_std"] != got["mean", "batch_std"], "one sample has no deviation; it must be NaN"
    assert_same(got, by_hand(out), "one sample", 1e-6)


def _calls(context: Context) -> None:
    model = _Twice()
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(4, 6)
    with context.backend(model) as lens, lens.record(["module:again:output", "module:again:input#2"]) as recording:
        with recording.step("loop"):
            torch.autograd.backward(model(x)["sum"].sum())
        table = recording.table()
    want = []
    for _ in range(3):
        want.append(model.again(x))
        x = want[-1].tanh()
    grads = torch.autograd.grad(5 * x.sum(), want)
    for call in range(3):
        got = recorded(table, 0, "activation", "module:again:output", call)
        assert_same(got, by_hand(want[call]), f"call {call}")
        got = recorded(table, 0, "gradient", "module:again:output", call)
        assert_same(got, by_hand(grads[call]), f"gradient of call {call}")
    got = recorded(table, 0, "activation", "module:again:input#2", 2)
    assert_same(got, by_hand(want[1].tanh()), "input of the third call")


def _late(context: Context) -> None:
    model = _Net()
    with context.backend(model) as lens, lens.record("module:first:output") as recording:
        for category in ("kept", None):
            with recording.step() as step:
                model(IDS)
                step.decide(category)
        table = recording.table()
    assert set(zip(table.step, table.category, strict=True)) == {(0, "kept")}, (
        "a dropped step was kept, or the other not"
    )
    want = by_hand(_by_autograd(model)[0]["module:first:output"])
    assert_same(recorded(table, 0, "activation", "module:first:output"), want, "before work in place")


def _mistakes(context: Context) -> None:
    model = _Net()
    with context.backend(model) as lens:
        expect(SiteError, lambda: lens.record("module:frist:output"), "first")
        expect(InputError, lambda: lens.record([], parameters=False), "nothing to record")
        recording = lens.record("module:first:output")
        expect(InputError, lambda: _enter(recording, ""), "category")
        expect(InputError, lambda: _enter(recording, "a", lambda: _enter(recording, "b")), "inside")
        expect(InputError, lambda: _enter(recording, None), "decide")
        expect(SiteError, lambda: _enter(recording, "a"), "first")
        assert recording.table().empty, "a refused step was recorded"
        _enter(recording, "a", lambda: model(IDS))
        assert len(recording.table()), "no step can be recorded after refused ones"
    expect(CrosslensError, lambda: _enter(recording, "a"), "closed")
    with context.backend(model) as lens:
        with lens.record("module:first:output") as recording:
            pass
        expect(ClosedError, lambda: _enter(recording, "a"), "closed")


def _enter(recording: Any, category: str | None, inside: Callable[[], object] = lambda: None) -> None:
    with recording.step(category):
        inside()


def _failing(context: Context) -> None:
    class Broken(Exception):
        pass

    def fail() -> None:
        model(IDS)
        raise Broken

    model = _Net()
    with context.backend(model) as lens, lens.record("module:*:output") as recording:
        _enter(recording, "good", lambda: model(IDS))
        expect(Broken, lambda: _enter(recording, "bad", fail), "")
        hooks = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not hooks, f"hooks are left on {hooks}"
        _enter(recording, "good", lambda: model(IDS))
        table = recording.table()
    assert set(table.category) == {"good"}, "a step that failed was recorded"
    assert set(table.step) == {0, 2}
    assert not model.embed.weight.requires_grad
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters()), "something was left on parameters"


def _beside(context: Context) -> None:
    model = _Net()
    values, _ = _by_autograd(model)
    site = "module:first:output"
    with context.backend(model) as one, context.backend(model) as two, HooksInspector(model) as hooks:
        first, second = one.record(site), two.record(site)
        with first.step("a"), second.step("b"):
            model(IDS)
        two.close()
        with first.step("c"):
            run = hooks.run(IDS, capture=[site])
        table, other = first.table(), second.table()
    assert torch.equal(run[site], values[site]), "hooks see something else beside a recording"
    for number, held in ((0, table), (1, table), (0, other)):
        assert_same(recorded(held, number, "activation", site), by_hand(values[site]), f"step {number}")


# ---- families


def _family(context: Context, scene: Scene) -> None:
    """Every site against the oracle."""
    sites = [site for site in sites_of(scene.family) if not site.endswith("attn.pattern")]
    table = _step(context, scene, sites)
    grads = scene.oracle.gradients(scene.ids, sites, partial(_metric, scene))
    for site in sites:
        got = recorded(table, 0, "activation", site)
        assert_same(got, by_hand(scene.truth.sites[site]), f"activation at {site}", scene.noise())
        got = recorded(table, 0, "gradient", site)
        assert_same(got, by_hand(grads[site]), f"gradient at {site}", scene.noise())


def _walk(context: Context, scene: Scene) -> None:
    """The residual stream against what the model itself returns of it; every other site, once for each row."""
    sites = context.lens(scene).architecture.sites.canonical
    sites = {name: site for name, site in sites.items() if site.local != "attn.pattern"}
    table = _step(context, scene, list(sites))
    seen = table[table.kind == "activation"]
    assert set(seen.site) == set(sites), f"not recorded: {set(sites) - set(seen.site)}"
    odd = sorted(set(seen.site[seen.rows != len(scene.ids)]))
    assert not odd, f"{odd}: figures of another number of rows than {len(scene.ids)}"
    output = scene.model(input_ids=scene.ids, output_hidden_states=True)
    total = _metric(scene, output.logits).sum()
    residual = output.hidden_states[1:-1]  # the last is behind the final norm, or is no input of anything
    for layer, (value, grad) in enumerate(zip(residual, torch.autograd.grad(total, residual), strict=True)):
        site = f"blocks.{layer}.resid_post"
        assert_same(recorded(table, 0, "activation", site), by_hand(value), f"activation at {site}", scene.noise())
        assert_same(recorded(table, 0, "gradient", site), by_hand(grad), f"gradient at {site}", scene.noise())
    assert_same(recorded(table, 0, "activation", "logits"), by_hand(output.logits), "logits", scene.noise())
    assert_same(recorded(table, 0, "loss", "loss"), {("value", "whole"): total.item()}, "loss", scene.noise())


def _metric(scene: Scene, logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, :-1].gather(-1, scene.ids[:, 1:, None]).sum((1, 2))


def _step(context: Context, scene: Scene, sites: Sequence[str]) -> Any:
    with context.lens(scene).record(sites, parameters=False) as recording:
        with recording.step("text") as step:
            total = _metric(scene, scene.model(input_ids=scene.ids).logits).sum()
            step.loss(total)
            torch.autograd.grad(total, [*scene.model.parameters()], allow_unused=True)  # leaves no .grad
        return recording.table()


_NETWORKS: tuple[tuple[Promise, str, tuple[str, ...], Callable[[Context], None]], ...] = (
    ("right", "figures", (), _figures),
    ("right", "odd-tensors", (), _odd_tensors),
    ("right", "one-sample", (), _one_sample),
    ("right", "calls", (), _calls),
    ("right", "decided-late", (), _late),
    ("no-trace", "training-unchanged", (), _unchanged),
    ("no-trace", "after-exception", (), _failing),
    ("owned", "inputs", (), _inputs),
    ("refuses", "mistakes", (), _mistakes),
    ("not-alone", "beside-others", ("coexist",), _beside),
)
