"""The Recorder: no number of the training changes, every figure is right, and what is wrong is said."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crosslens.adapters.errors import ClosedError, InputError, SiteError, UnsupportedError
from crosslens.tasks.recorder import Recorder, RecordingWarning

Step = Callable[[nn.Module, Tensor], Tensor]


class Lambda(nn.Module):
    """A module of one function."""

    def __init__(self, fn: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any) -> Any:
        return self.fn(self, *args)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(8, 3))


def _views() -> nn.Module:
    """In-place work on a view of what a module returned."""
    return nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def _recurrent() -> nn.Module:
    def run(self: Any, x: Tensor) -> Any:
        return self.head(self.lstm(x.view(len(x), 3, 2))[0][:, -1])

    return Lambda(run, lstm=nn.LSTM(2, 4, batch_first=True, num_layers=2, dropout=0.2), head=nn.Linear(4, 3))


def _tied() -> nn.Module:
    def run(self: Any, x: Tensor) -> Any:
        return self.out(self.shared(torch.tanh(self.shared(x))))

    return Lambda(run, shared=nn.Linear(6, 6), out=nn.Linear(6, 3))


def _checkpointed(reentrant: bool) -> Callable[[], nn.Module]:
    def run(self: Any, x: Tensor) -> Any:
        hidden = checkpoint(self.body, self.first(x), use_reentrant=reentrant)
        return self.last(hidden)

    def make() -> nn.Module:
        body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 8))
        return Lambda(run, first=nn.Linear(6, 8), body=body, last=nn.Linear(8, 3))

    return make


MODELS = {
    "mlp": _mlp, "views": _views, "convolutions": _convolutions, "recurrent": _recurrent, "tied": _tied,
    "checkpoint": _checkpointed(False), "reentrant": _checkpointed(True),
}  # fmt: skip


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def _plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def _autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(x).float().square().mean()


def _scaled(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean() * 2.0**14


def _train(
    make: Callable[[], nn.Module], loss_of: Step, recorder_of: Callable[[nn.Module], Recorder] | None
) -> tuple[list[Tensor], nn.Module]:
    """Losses of some steps, and the model; the random state is part of what is compared."""
    model = _made(make)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recorder = None if recorder_of is None else recorder_of(model)
    trace: list[Tensor] = []
    for number in range(4):
        x = torch.randn(5, 6)

        def one(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            trace.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
            optimizer.step()
            return loss.detach()

        if recorder is None:
            trace.append(one())
            continue
        with recorder.step("even" if number % 2 == 0 else None) as step:
            step.samples(list("aabbb"))
            loss = one()
            step.loss("loss", loss)
            step.gradients("main")
            if number % 2:
                step.category = "odd"
        trace.append(loss)
    if recorder is not None:
        recorder.close()
    trace += [*model.state_dict().values(), torch.get_rng_state()]
    return trace, model


@pytest.mark.parametrize("loss_of", [_plain, _autocast, _scaled])
@pytest.mark.parametrize("name", MODELS)
def test_no_number_of_the_training_changes_and_no_trace_is_left(name: str, loss_of: Step) -> None:
    bare, untouched = _train(MODELS[name], loss_of, None)
    recorders: list[Recorder] = []

    def recorder_of(model: nn.Module) -> Recorder:
        recorders.append(Recorder(model, "module:*:*", kpis=("mean", "skewness", "std/batch_mean")))
        return recorders[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordingWarning)
        seen, model = _train(MODELS[name], loss_of, recorder_of)
    assert len(bare) == len(seen)
    for one, two in zip(bare, seen, strict=True):
        assert torch.equal(one, two)
    for one_p, two_p in zip(untouched.parameters(), model.parameters(), strict=True):
        assert one_p.requires_grad == two_p.requires_grad
        assert not two_p._backward_hooks
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    table = recorders[0].table()
    assert set(table["category"]) >= {"even", "odd"}
    assert set(table["kind"]) == {"activation", "gradient", "parameter", "loss"}


# ---- figures


def _by_hand(x: Tensor) -> dict[str, float]:
    y = x.detach().double().numpy().ravel()
    return {
        "count": y.size, "mean": y.mean(), "sd": y.std(), "abs_mean": np.abs(y).mean(), "abs_max": np.abs(y).max(),
        "rms": np.sqrt((y * y).mean()), "min": y.min(), "max": y.max(), "zero_fraction": (y == 0).mean(),
        "nan": 0, "inf": 0,
    }  # fmt: skip


def _rows(table: Any, **where: Any) -> dict[str, float]:
    for name, value in where.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    assert table["kpi"].is_unique, table
    return dict(zip(table["kpi"], table["value"], strict=True))


def test_figures_of_activations_gradients_and_parameters_are_those_by_hand() -> None:
    model = _made(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double())
    x = torch.randn(5, 6, dtype=torch.float64)
    with Recorder(model, "module:?:output") as recorder, recorder.step("a"):
        before = [p.detach().clone() for p in model.parameters()]
        model(x).square().sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)  # the figures are of the step's beginning
    first = F.linear(x, before[0].requires_grad_(), before[1])
    first.retain_grad()
    second = first.relu()
    second.retain_grad()
    third = F.linear(second, before[2], before[3])
    third.retain_grad()
    third.square().sum().backward()
    table = recorder.table()
    for site, tensor in (("0", first), ("1", second), ("2", third)):
        name = f"module:{site}:output"
        assert _rows(table, kind="activation", site=name) == pytest.approx(_by_hand(tensor), rel=1e-12, abs=1e-15)
        assert tensor.grad is not None
        found = _rows(table, kind="gradient", site=name)
        assert found == pytest.approx(_by_hand(tensor.grad), rel=1e-12, abs=1e-15)
    for (name, parameter), value in zip(model.named_parameters(), before, strict=True):
        found = _rows(table, kind="parameter", site=f"parameter:{name}")
        assert found == pytest.approx(_by_hand(value), rel=1e-12, abs=1e-15)
        assert parameter.grad is not None
        found = _rows(table, kind="gradient", site=f"parameter:{name}")
        assert found == pytest.approx(_by_hand(parameter.grad), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_any_dtype(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 7, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    model = Lambda(lambda self, y: y)
    with Recorder(model, "module::output", parameters=False) as recorder, recorder.step():
        model(x)
    found = _rows(recorder.table(), kind="activation")
    assert found == pytest.approx(_by_hand(x.double()), rel=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (2, 3, 4), (2, 3, 4, 5), (1, 5000)])
def test_any_rank_and_any_strides(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model = Lambda(lambda self, y: y)
    with Recorder(model, "module::output", parameters=False) as recorder:
        for y in (x, x.transpose(0, -1) if x.ndim else x, x.expand(2, *shape)[1:], torch.stack([x, x], -1)[..., 0]):
            with recorder.step():
                model(y)
    table = recorder.table()
    assert table["step"].nunique() == 4
    for step in range(4):
        assert _rows(table, step=step) == pytest.approx(_by_hand(x), rel=1e-6, abs=1e-7)


def test_what_is_not_finite_is_counted_and_takes_no_part() -> None:
    x = torch.tensor([[1.0, torch.nan, 3.0], [torch.inf, -torch.inf, -2.0], [torch.nan] * 3])
    model = Lambda(lambda self, y: y)
    with Recorder(model, "module::output", parameters=False) as recorder:
        with recorder.step():
            model(x)
        with recorder.step():
            model(x[2:])
    table = recorder.table()
    expected = _by_hand(torch.tensor([1.0, 3.0, -2.0])) | {"nan": 4, "inf": 2}
    assert _rows(table, step=0) == pytest.approx(expected, rel=1e-6)
    empty = _rows(table, step=1)
    assert empty["nan"] == 3
    assert empty["count"] == 0
    assert np.isnan(empty["mean"])


def test_comgras_figures_are_comgras(tmp_path: Path) -> None:
    from crosslens.adapters import open_inspector

    make = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()  # noqa: E731
    names = [f"{k}/{a}" for k in ("mean", "abs_mean", "std", "abs_max")
             for a in ("batch_mean", "batch_std", "batch_abs_max")]  # fmt: skip
    x = torch.randn(5, 6, dtype=torch.float64)
    model = _made(make)
    with Recorder(model, "module:?:output", kpis=names, parameters=False) as recorder, recorder.step("a"):
        model(x).square().sum().backward()
    model = _made(make)
    with open_inspector("comgra", model) as lens:
        with lens.record("module:?:output", out=tmp_path, parameters=False) as theirs, theirs.step("a"):  # type: ignore[attr-defined]
            model(x).square().sum().backward()
        expected = theirs.table()
    ours = recorder.table()
    assert len(expected) == 3 * 2 * 12
    for row in expected.itertuples():
        same = (ours["kind"] == row.kind) & (ours["site"] == row.site)
        mine = ours[same & (ours["kpi"] == f"{row.kpi}/{row.aggregate}")]
        assert mine["value"].tolist() == pytest.approx([row.value], rel=1e-12)


# ---- categories, samples, groups, iterations


def test_samples_have_figures_of_their_own_by_category() -> None:
    model = _made(lambda: nn.Linear(6, 4))
    x = torch.randn(5, 6)
    with Recorder(model, "module::output", parameters=False) as recorder, recorder.step("whole") as step:
        step.samples(["p", "q", "p", "q", "q"])
        out = model(x)
        grad = torch.autograd.grad(out.square().sum(), out, retain_graph=True)[0]
        out.square().sum().backward()
    table = recorder.table()
    whole = table[table["sample"].isna()]
    assert set(whole["category"]) == {"whole"}
    for kind, tensor in (("activation", out), ("gradient", grad)):
        for number, label in enumerate("pqpqq"):
            found = _rows(table, kind=kind, sample=number, category=label)
            assert found == pytest.approx(_by_hand(tensor[number]), rel=1e-5, abs=1e-7)
        assert _rows(whole, kind=kind) == pytest.approx(_by_hand(tensor), rel=1e-5, abs=1e-7)


def test_samples_may_be_told_apart_after_the_forward() -> None:
    model = nn.Linear(6, 4)
    with Recorder(model, "module::output", parameters=False) as recorder, recorder.step() as step:
        model(torch.randn(2, 6))
        with pytest.raises(InputError, match="per_sample=True"):
            step.samples(["p", "q"])
    with Recorder(model, "module::output", parameters=False, per_sample=True) as recorder, recorder.step("a") as step:
        model(torch.randn(2, 6))
        step.samples(["p", "q"])
    table = recorder.table()
    assert set(table[table["sample"].notna()]["category"]) == {"p", "q"}


def test_the_category_may_come_last_or_the_step_be_dropped() -> None:
    model = nn.Linear(2, 2)
    schedule = {"late": 1, None: [0]}
    with Recorder(model, "module::output", parameters=False, schedule=schedule) as recorder:
        for number in range(4):
            with recorder.step() as step:
                model(torch.ones(1, 2))
                step.loss("l", number)
                if number == 1:
                    step.discard()
                if number == 2:
                    step.category = "late"
    table = recorder.table()
    recorded = table[table["kind"] == "activation"][["step", "category"]].drop_duplicates()
    assert recorded.to_numpy().tolist() == [[0, None], [2, "late"]]
    assert table[table["kind"] == "loss"]["step"].tolist() == [0, 2, 3]


def test_an_error_in_a_step_drops_it_and_passes() -> None:
    model = nn.Linear(2, 2)
    with Recorder(model, "module::output", parameters=False) as recorder:
        with recorder.step("a"):
            model(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="mine"), recorder.step("a"):  # noqa: PT012
            model(torch.ones(1, 2))
            raise RuntimeError("mine")
        with recorder.step("b"):
            model(torch.ones(1, 2))
    assert not model._forward_hooks
    assert set(recorder.table()["step"]) == {0, 2}


def test_gradients_by_loss_group_and_none_is_not_zero() -> None:
    def run(self: Any, x: Tensor) -> Any:
        hidden = self.body(x)
        return self.policy(hidden), self.value(hidden)

    parts = {"body": nn.Linear(6, 4), "policy": nn.Linear(4, 2), "value": nn.Linear(4, 1), "unused": nn.Linear(2, 2)}
    model = _made(lambda: Lambda(run, **parts).double())
    x = torch.randn(5, 6, dtype=torch.float64)
    policy, value = model(x)
    expected = {}
    for group, loss in (("policy", policy.square().sum()), ("value", value.square().mean())):
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        expected[group] = dict(zip((n for n, _ in model.named_parameters()), grads, strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # left over from a step before: no part of this one
    with Recorder(model, "module:body:output") as recorder, recorder.step("a") as step:
        policy, value = model(x)
        policy.square().sum().backward(retain_graph=True)
        step.gradients("policy")
        value.square().mean().backward()
        step.gradients("value")
    table = recorder.table(["gradient"])
    assert set(table["group"]) == {"policy", "value"}
    for group, grads in expected.items():
        for name, grad in grads.items():
            found = table[(table["group"] == group) & (table["site"] == f"parameter:{name}") & (table["kpi"] == "mean")]
            if grad is None:
                assert len(found) == 0 or found["value"].isna().all()  # never 0
            else:
                where = {"group": group, "site": f"parameter:{name}"}
                assert _rows(table, **where) == pytest.approx(_by_hand(grad), rel=1e-10, abs=1e-13)
    assert "parameter:unused.weight" not in set(table["site"])


def test_backwards_that_add_up_to_one_gradient() -> None:
    """Micro-batches under one name: the parameters' gradient is the sum, as the optimiser sees it."""
    model = _made(lambda: nn.Linear(6, 4).double())
    parts = torch.randn(3, 5, 6, dtype=torch.float64)
    with Recorder(model, "module::output") as recorder, recorder.step() as step:
        model.zero_grad()
        for part in parts:
            model(part).square().sum().backward()
        step.gradients("sum")
    for name, p in model.named_parameters():
        assert p.grad is not None
        found = _rows(recorder.table(), kind="gradient", site=f"parameter:{name}")
        assert found == pytest.approx(_by_hand(p.grad), rel=1e-10)
    activations = recorder.table(["activation"])
    assert sorted(set(activations["call"])) == [0, 1, 2]


def test_iterations_and_roles() -> None:
    model = _made(lambda: nn.Linear(2, 2))
    xs = [torch.full((3, 2), float(i)) for i in range(3)]
    with Recorder(model, "module::input", parameters=False) as recorder, recorder.step("a") as step:
        for i, x in enumerate(xs):
            with step.iteration(role="player" if i < 2 else "judge") as number:
                assert number == i
                step.loss("l", model(x).sum())
    table = recorder.table()
    means = table[(table["kind"] == "activation") & (table["kpi"] == "mean")]
    found = means[["iteration", "role", "value"]].to_numpy().tolist()
    assert found == [[0, "player", 0.0], [1, "player", 1.0], [2, "judge", 2.0]]
    losses = table[table["kind"] == "loss"]
    assert losses[["iteration", "role"]].to_numpy().tolist() == [[0, "player"], [1, "player"], [2, "judge"]]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_recorded_once_with_the_gradients_of_the_plain_run(reentrant: bool) -> None:
    found = []
    for make in (_checkpointed(reentrant), _checkpointed(reentrant)):
        model = _made(make).double().eval()
        if found:
            fn: Any = model
            fn.fn = lambda self, x: self.last(self.body(self.first(x)))
        x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6).requires_grad_()
        with Recorder(model, "module:body.*:output") as recorder, recorder.step("a"):
            model(x).square().sum().backward()
        found.append(recorder.table().sort_values(["kind", "site", "kpi"], ignore_index=True))
    assert len(found[0]) == len(found[1])
    columns = ["kind", "site", "kpi", "iteration", "call", "group"]
    assert found[0][columns].equals(found[1][columns])
    np.testing.assert_allclose(found[0]["value"], found[1]["value"], rtol=1e-10, atol=1e-13)


def test_work_in_place_after_the_site_changes_nothing() -> None:
    model = Lambda(lambda self, x: self.flat(x).mul_(0).add_(7), flat=nn.Flatten())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    grad = torch.randn(4, 6, dtype=torch.float64)
    with Recorder(model, "module:flat:output", parameters=False) as recorder, recorder.step():
        y = x.clone().requires_grad_()
        model(y * 1).backward(grad)
    assert _rows(recorder.table(), kind="activation") == pytest.approx(_by_hand(x), rel=1e-12)
    assert _rows(recorder.table(), kind="gradient")["abs_max"] == 0  # multiplied by 0


def test_every_tensor_of_a_tuple_has_a_name() -> None:
    model = _made(_recurrent)
    with Recorder(model, "module:lstm:output", parameters=False) as recorder, recorder.step():
        model(torch.randn(5, 6)).sum().backward()
    sites = {f"module:lstm:output{rest}" for rest in ("[0]", "[1][0]", "[1][1]")}
    table = recorder.table()
    assert set(table[table["kind"] == "activation"]["site"]) == sites


def test_no_grad_and_integers() -> None:
    model = nn.Embedding(10, 4)
    with Recorder(model, ["module::input", "module::output"]) as recorder, torch.no_grad(), recorder.step("eval"):
        model(torch.arange(5))
    table = recorder.table()
    assert set(table["kind"]) == {"activation", "parameter"}
    assert _rows(table, site="module::input", kpi="mean") == {"mean": 2.0}


# ---- cost, and what is refused


def test_a_step_that_is_not_due_touches_nothing() -> None:
    model = nn.Linear(2, 2)
    hooked: list[int] = []
    with Recorder(model, "module::output", schedule=[1]) as recorder:
        for _ in range(3):
            with recorder.step("a") as step:
                hooked.append(len(model._forward_hooks))
                assert step.recorded == bool(hooked[-1])
                model(torch.ones(1, 2))
    assert hooked == [0, 1, 0]


def test_no_activation_is_kept() -> None:
    import weakref

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    seen: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out)))
    with Recorder(model, "module:*:output") as recorder:
        with recorder.step("a"):
            model(torch.randn(2, 4)).sum().backward()
        gc.collect()
        assert seen[0]() is None
        with recorder.step("a"), torch.no_grad():
            model(torch.randn(2, 4))
            assert seen[1]() is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sites": "module:secnd:output"}, SiteError, "second"),
        ({"sites": "module:*:outptu"}, SiteError, "output"),
        ({"sites": "blocks.0.resid_post"}, SiteError, "family"),
        ({"sites": ()}, InputError, "nothing to record"),
        ({"kpis": ("meen",)}, InputError, "'meen'"),
        ({"kpis": ()}, InputError, "empty"),
        ({"schedule": 0}, InputError, "from 1"),
        ({"flush_every": 0}, InputError, "flush_every=0"),
    ],
)
def test_what_cannot_be_is_refused_before_training(options: dict[str, Any], error: type[Exception], words: str) -> None:
    model = nn.ModuleDict({"second": nn.Linear(2, 2)})
    with pytest.raises(error, match=words):
        Recorder(model, **{"parameters": False, **options})


def test_a_compiled_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(UnsupportedError, match="compiled"):
        Recorder(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    model[0].compile(backend="eager")
    with pytest.raises(UnsupportedError, match="'0' is compiled"):
        Recorder(model)


def test_a_function_around_the_model_that_is_compiled_is_noticed() -> None:
    model = _made(lambda: nn.Linear(2, 2))
    run = torch.compile(lambda x: model(x).square().sum(), backend="eager")
    x = torch.ones(3, 2)
    bare = run(x)
    with (
        Recorder(model, "module::output") as recorder, pytest.warns(RecordingWarning, match="compiled"),
        recorder.step("a"),
    ):  # fmt: skip
        loss = run(x)
    assert torch.equal(loss, bare)
    assert recorder.problems


def test_misuse_of_a_step_is_said_where_it_happens(tmp_path: Path) -> None:
    recorder = Recorder(nn.Linear(2, 2), "module::output")
    with recorder.step() as step:
        recorder._model(torch.ones(1, 2))
        for wrong, words in (
            (lambda: step.loss("", 1.0), "name"),
            (lambda: step.loss("l", torch.ones(2)), "one real number"),
            (lambda: step.loss("l", "x"), "one real number"),  # type: ignore[arg-type]
            (lambda: step.samples("ab"), "list of texts"),
            (lambda: step.gradients(""), "name of a loss"),
            (lambda: setattr(step, "category", 3), "category is 3"),
            (lambda: recorder.step("b").__enter__(), "none lies inside another"),
        ):
            with pytest.raises(InputError, match=words):
                wrong()
        step.gradients("g")
        with pytest.raises(InputError, match="already"):
            step.gradients("g")
    recorder.close()
    recorder.close()
    with pytest.raises(ClosedError), recorder.step():
        pass


@pytest.fixture(autouse=True)
def _no_warning_unless_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RecordingWarning)
        yield
