"""comgra behind `record`: the library does the work, its traps do not reach the caller, its files can be read."""

from __future__ import annotations

import gc
import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crosslens.adapters import ClosedError, InputError, SiteError, UnsupportedError, open_inspector
from crosslens.adapters.comgra import ComgraInspector
from crosslens.adapters.comgra_steps import COLUMNS, escape, read_table, unescape
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.conformance.records import assert_same, by_hand, of_whole, recorded

X = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(4, 5)
OUT = "module::output"


def _net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()


@pytest.fixture
def lens() -> Iterator[ComgraInspector]:
    with ComgraInspector(_net()) as lens:
        yield lens


class _Fn(nn.Module):
    """A module of one function, with no parameters."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any) -> Any:
        return self.fn(*args)


# ---- the library does the work


def test_comgra_takes_every_figure_and_sees_no_tensor_of_the_callers(
    lens: ComgraInspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    groups: list[str] = []
    register, gradients = ComgraRecorder.register_tensor, ComgraRecorder.record_current_gradients

    def registering(self: Any, name: str, tensor: Tensor, **kind: Any) -> None:
        seen.append(tensor)
        register(self, name, tensor, **kind)

    def grading(self: Any, name: str) -> None:
        groups.append(name)
        seen.extend(t.grad for t in self.tensor_to_list_of_references)
        gradients(self, name)

    monkeypatch.setattr(ComgraRecorder, "register_tensor", registering)
    monkeypatch.setattr(ComgraRecorder, "record_current_gradients", grading)
    passed: list[Tensor] = [X]
    for module in lens.model:
        module.register_forward_hook(lambda m, args, out: passed.append(out))
    with lens.record("module:*:output") as recording, recording.step("a") as step:
        loss = lens.model(X).sum()
        step.loss(loss)
        loss.backward()
    assert len(seen) == 4 + 4 + 1 + 2 + 8  # parameters, outputs, the loss, comgra's two ends; gradients
    assert groups == ["gradient:gradient"]
    own = [*passed, loss, *lens.model.parameters(), *(p.grad for p in lens.model.parameters())]
    own_memory = {t.untyped_storage().data_ptr() for t in own}
    assert not own_memory & {t.untyped_storage().data_ptr() for t in seen}


def test_the_columns_and_a_table_without_steps(lens: ComgraInspector) -> None:
    with lens.record(OUT) as recording:
        empty = recording.table()
        with recording.step("a"):
            lens.model(X)
        table = recording.table()
    assert len(empty) == 0
    assert tuple(empty) == tuple(table) == COLUMNS
    assert list(empty.dtypes) == list(table.dtypes)
    assert set(table.kind) == {"parameter", "activation"}
    assert set(table[table.kind == "activation"].rows) == {4}


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    seed=st.integers(0, 99),
)
def test_figures_are_their_definition_at_any_shape_and_dtype(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ComgraInspector(nn.Identity()) as lens, lens.record(OUT, parameters=False) as recording:
            with recording.step("a"):
                lens.model(x)
            got = recorded(recording.table(), 0, "activation", OUT)
    exact = dtype in (torch.float64, torch.int64, torch.bool)
    want = by_hand(x)
    assert_same(
        {k: v + 1 for k, v in got.items()}, {k: v + 1 for k, v in want.items()}, str(shape), 1e-12 if exact else 1e-6
    )


def test_bfloat16_figures_are_not_rounded_to_bfloat16() -> None:
    x = torch.linspace(0, 1, 300).reshape(3, 100).bfloat16()
    with ComgraInspector(nn.Identity()) as lens, lens.record(OUT, parameters=False) as recording:
        with recording.step("a"):
            lens.model(x)
        got = recorded(recording.table(), 0, "activation", OUT)
    assert_same(got, by_hand(x), "bfloat16", 1e-6)
    assert abs(x.mean(1).mean().item() - by_hand(x)["mean", "batch_mean"]) > 1e-5, "vacuous: comgra's own is exact"


# ---- categories, samples, groups, schedule


@given(st.text(min_size=1, max_size=20))
def test_a_category_can_be_spelled_and_read_back(category: str) -> None:
    spelled = escape(category)
    assert re.fullmatch(r"[a-zA-Z0-9-_]+", spelled)
    assert not spelled.startswith("__")
    assert spelled != "any_value"
    assert unescape(spelled) == category


@given(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5))
def test_two_categories_are_never_one(a: str, b: str) -> None:
    assert (escape(a) == escape(b)) == (a == b)


def test_samples_are_kept_evenly_from_their_categories(lens: ComgraInspector) -> None:
    with lens.record("module:0:output", per_sample=2) as recording:
        with recording.step("a", ["x", "x", "x", "y | z"]):
            lens.model(X)
        with recording.step("b"):
            lens.model(X)
        table = recording.table()
    kept = table[(table["aggregate"] == "sample") & (table.kpi == "mean")]
    assert [tuple(row) for row in kept[["step", "sample", "label"]].itertuples(index=False)] == [
        (0, 0, "x"), (0, 3, "y | z"), (1, 0, ""), (1, 1, ""),
    ]  # fmt: skip
    want = lens.model[0](X).detach().mean(1).tolist()
    assert kept.value.tolist() == pytest.approx([want[0], want[3], want[0], want[1]], abs=1e-12)


def test_gradients_of_two_losses_are_two_groups(lens: ComgraInspector) -> None:
    site = "module:0:output"
    with lens.record(site) as recording:
        with recording.step("a") as step:
            out = lens.model(X)
            out.sum().backward(retain_graph=True)
            step.gradients("sum")
            (out**2).sum().backward(retain_graph=True)
            (out**2).sum().backward()
        table = recording.table()
    pre = lens.model[0](X)
    out = lens.model[2](pre.relu())
    one = torch.autograd.grad(out.sum(), pre, retain_graph=True)[0]
    other = torch.autograd.grad(2 * (out**2).sum(), pre)[0]
    for group, want in (("sum", one), ("gradient", other)):
        assert_same(recorded(table[table.group == group], 0, "gradient", site), by_hand(want), group)


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        (1, [0, 1, 2, 3, 4, 5]),
        (3, [0, 1, 4, 5]),  # a at 0 and 4: 2 is too early; b at 1 and 5
        ({2, 5}, [2, 5]),
        (lambda step, category: category == "a b" and step > 0, [2, 4]),
        (DecisionMakerForRecordingsFrequencyPerType(2, exponential_backoff_factor=2.0), [0, 1, 4, 5]),
    ],
    ids=["every", "third", "steps", "function", "comgra"],
)
def test_steps_are_recorded_on_schedule(lens: ComgraInspector, when: Any, steps: list[int]) -> None:
    calls = 0
    with lens.record(OUT, when=when, parameters=False) as recording:
        for number in range(6):
            with recording.step("b" if number % 2 else "a b"):
                lens.model(X)
                calls += 1
        assert sorted(set(recording.table().step)) == steps
    assert calls == 6


def test_a_schedule_is_asked_once_a_step_when_the_category_is_known(lens: ComgraInspector) -> None:
    asked: list[tuple[int, str]] = []

    def choose(step: int, category: str) -> bool:
        asked.append((step, category))
        return step < 2

    with lens.record(OUT, when=choose) as recording:
        for category in ("a", None, "любой", None):
            with recording.step(category) as step:
                lens.model(X)
                step.decide(category or "late")
        assert set(recording.table().step) == {0, 1}
    assert asked == [(0, "a"), (1, "late"), (2, "любой"), (3, "late")]


def test_a_step_that_is_not_on_schedule_is_not_even_watched(lens: ComgraInspector) -> None:
    with lens.record(OUT, when=lambda step, category: False) as recording, recording.step("a") as step:
        assert not lens.model._forward_hooks
        step.loss(lens.model(X).sum())
        step.gradients("one")
    assert recording.table().empty


# ---- its traps


def test_frozen_shared_and_tied_parameters(lens: ComgraInspector) -> None:
    """comgra itself unfreezes, refuses a module that is held twice, and takes a tied weight for its last holder."""
    inner = nn.Linear(5, 5).double()
    model = nn.ModuleDict({"a": inner, "b": nn.Sequential(inner), "c": nn.Linear(5, 5, bias=False).double()})
    model["c"].weight = inner.weight
    inner.bias.requires_grad_(False)
    with ComgraInspector(model) as lens, lens.record([]) as recording:
        with recording.step("x"):
            model["c"](model["b"](X)).sum().backward()
        table = recording.table()
    assert not inner.bias.requires_grad
    assert set(table.site[table.kind == "parameter"]) == {"parameter:a.weight", "parameter:a.bias"}
    assert set(table.site[table.kind == "gradient"]) == {"parameter:a.weight"}
    assert_same(recorded(table, 0, "gradient", "parameter:a.weight"), of_whole(inner.weight.grad), "tied")


def test_gradients_are_of_this_step_whatever_lies_in_grad(lens: ComgraInspector) -> None:
    with lens.record(OUT) as recording:
        for _ in range(2):
            with recording.step("x"):
                lens.model(X).sum().backward()  # and no zero_grad
                nn.utils.clip_grad_norm_(lens.model.parameters(), 1e-3)
        table = recording.table()
    want = of_whole(torch.autograd.grad(lens.model(X).sum(), lens.model[0].weight)[0])
    for step in (0, 1):
        assert_same(recorded(table, step, "gradient", "parameter:0.weight"), want, f"step {step}")


def test_work_in_place_on_part_of_a_tensor_does_not_reach_the_gradients_before_it() -> None:
    weight = torch.arange(1.0, 7, dtype=torch.float64)

    def half(x: Tensor) -> Tensor:
        x[:, 3:].relu_()
        return x

    model = nn.Sequential(_Fn(lambda x: (x * 2)[:, 1:]), _Fn(half))
    x = torch.linspace(-1, 1, 28, dtype=torch.float64).reshape(4, 7).requires_grad_()
    with ComgraInspector(model) as lens, lens.record(["module:0:output", "module:1:output"]) as recording:
        with recording.step("x"):
            (model(x) * weight).sum().backward()
        table = recording.table()
    value = x.detach()[:, 1:] * 2
    grad = weight.expand(4, 6).clone()
    grad[:, 3:][value[:, 3:] <= 0] = 0
    assert 0 < (grad == 0).sum() < 12
    assert_same(recorded(table, 0, "activation", "module:0:output"), by_hand(value), "value")
    assert_same(recorded(table, 0, "gradient", "module:0:output"), by_hand(grad), "gradient")
    assert_same(recorded(table, 0, "gradient", "module:1:output"), by_hand(weight.expand(4, 6)), "after it")


def test_sites_with_other_numbers_of_rows_stand_beside_each_other() -> None:
    model = nn.Sequential(nn.Linear(5, 6).double(), _Fn(lambda x: x.mean(0, keepdim=True)))
    with ComgraInspector(model) as lens, lens.record("module:*:output", per_sample=3) as recording:
        for category in ("a", "b"):
            with recording.step(category, ["p", "q", "p", "q"]) as step:
                loss = model(X).pow(2).sum()
                step.loss(loss)
                loss.backward()
        table = recording.table()
    assert table[table.kind == "activation"].groupby("site").rows.unique().map(list).to_dict() == {
        "module:0:output": [4], "module:1:output": [1], "module::output": [1],
    }  # fmt: skip
    assert_same(recorded(table, 1, "loss", "loss"), {("value", "whole"): loss.item()}, "loss")
    assert len(table[(table.kind == "parameter") & (table.step == 1)]) == 8
    one = table[(table.site == "module:1:output") & (table["aggregate"] == "batch_std")]
    assert len(one) == 16  # of activations and gradients, four key figures, in two steps
    assert one.value.isna().all()


def test_a_sparse_gradient_and_the_largest_singular_value() -> None:
    model = nn.Embedding(7, 3, sparse=True)
    with ComgraInspector(model) as lens, lens.record([], svd=True) as recording:
        with recording.step("x"):
            model(torch.tensor([[1, 1, 2]])).sum().backward()
        table = recording.table()
    got = recorded(table, 0, "gradient", "parameter:weight")
    dense = model.weight.grad.to_dense()
    want = {**of_whole(dense), ("svd", "whole"): torch.linalg.svdvals(dense)[0].item()}
    assert_same(got, want, "sparse", 1e-6)
    assert recorded(table, 0, "parameter", "parameter:weight")["svd", "whole"] == pytest.approx(
        torch.linalg.svdvals(model.weight.detach())[0].item(), rel=1e-6
    )


def test_a_checkpointed_module_is_called_again() -> None:
    from torch.utils.checkpoint import checkpoint

    model = _net()
    with ComgraInspector(model) as lens, lens.record("module:0:output") as recording:
        with recording.step("x"):
            checkpoint(model, X.clone().requires_grad_(), use_reentrant=False).sum().backward()
        table = recording.table()
    assert set(table.call[table.kind == "activation"]) == {0, 1}
    first, again = (recorded(table, 0, "activation", "module:0:output", call) for call in (0, 1))
    assert first == again


def test_names_that_comgra_cannot_spell() -> None:
    model = nn.ModuleDict({"a*b": nn.Linear(5, 2).double(), "50%2a": nn.Linear(5, 2).double()})
    with ComgraInspector(model) as lens, lens.record("module:*:output") as recording:
        with recording.step("x") as step:
            step.loss(model["a*b"](X).sum(), "a*%")
            model["50%2a"](X)
        table = recording.table()
    assert set(table.site[table.kind == "activation"]) == {"module:a*b:output", "module:50%2a:output"}
    assert "a*%" in set(table.site)


def test_nothing_is_printed_and_nothing_warned(lens: ComgraInspector, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lens.record("module:*:output") as recording, recording.step("x"):
            lens.model(X[:1]).sum().backward()
    assert capsys.readouterr() == ("", "")


def test_training_of_a_language_model_is_the_same_bit_by_bit() -> None:
    def train(record: bool) -> tuple[list[float], list[Tensor]]:
        model, _ = tiny_model("llama")
        ids = torch.arange(1, 25).reshape(3, 8)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
        losses = []
        with ComgraInspector(model) as lens:
            recording = lens.record(["blocks.*.{resid_post,mlp.post,attn.z}", "logits"], when=1 if record else {99})
            for _ in range(3):
                with recording.step("text") as step:
                    optimizer.zero_grad()
                    loss = model(ids, labels=ids).loss
                    step.loss(loss)
                    loss.backward()
                    optimizer.step()
                losses.append(loss.item())
            assert set(recording.table().step) == ({0, 1, 2} if record else set())
        return losses, [p.detach() for p in model.parameters()]

    (losses, weights), (plain, same) = train(True), train(False)
    assert losses == plain
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


# ---- files


def test_everything_lies_in_the_folder_and_is_read_without_the_recording(
    lens: ComgraInspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    out = tmp_path / "new" / "folder"
    with lens.record(OUT, out=out) as recording, recording.step("race: black"):
        lens.model(X)
    assert not list((tmp_path / "cwd").iterdir())
    assert read_table(out).equals(recording.table())
    assert set(read_table(out).category) == {"race: black"}
    with pytest.raises(InputError, match="rows-4"):  # comgra would delete what is there
        lens.record(OUT, out=out)
    assert len(read_table(out))


def test_a_temporary_folder_goes_with_its_recording(lens: ComgraInspector) -> None:
    recording = lens.record(OUT)
    with recording.step("a"):
        lens.model(X)
    recording.close()
    assert len(recording.table())
    folder = recording.folder
    del recording
    gc.collect()
    assert not folder.exists()


def test_a_full_disk_costs_one_step(lens: ComgraInspector, monkeypatch: pytest.MonkeyPatch) -> None:
    save = ComgraRecorder._save_msgpack

    def full(self: Any, content: Any, folder: Path, number: int) -> Path:
        if self.training_step == 1:
            (folder / f"{number}.msgpack").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return save(self, content, folder, number)

    monkeypatch.setattr(ComgraRecorder, "_save_msgpack", full)
    with lens.record(OUT) as recording:
        for number in range(3):
            if number == 1:
                with pytest.raises(InputError, match=r"step 1 cannot be written .*No space left"), recording.step("a"):
                    lens.model(X)
            else:
                with recording.step("a"):
                    lens.model(X)
        assert set(recording.table().step) == {0, 2}


def test_of_a_step_that_fails_in_its_second_trial_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 6).double(), _Fn(lambda x: x.mean(0, keepdim=True)))
    save, fail = ComgraRecorder._save_msgpack, True

    def broken(self: Any, content: Any, folder: Path, number: int) -> Path:
        assert not (fail and "rows-1" in str(folder)), "a bug of comgra's"
        return save(self, content, folder, number)

    monkeypatch.setattr(ComgraRecorder, "_save_msgpack", broken)
    with ComgraInspector(model) as lens, lens.record("module:*:output") as recording:
        with pytest.raises(UnsupportedError, match=r"comgra fails at step 0.*a bug of comgra's"), recording.step("a"):
            model(X)
        assert recording.table().empty
        fail = False
        with recording.step("a"):
            model(X)
        assert set(recording.table().rows) == {0, 1, 4}


def test_a_process_that_is_killed_leaves_the_steps_before(lens: ComgraInspector, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            save = ComgraRecorder._save_msgpack

            def dies(self: Any, content: Any, folder: Path, number: int) -> Path:
                if self.training_step == 2:
                    (folder / f"{number}.msgpack").write_bytes(b"half")
                    os._exit(7)
                return save(self, content, folder, number)

            ComgraRecorder._save_msgpack = dies
            recording = lens.record(OUT, out=tmp_path / "out")
            for _ in range(3):
                with recording.step("a"):
                    lens.model(X)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert set(read_table(tmp_path / "out").step) == {0, 1}


def test_a_file_that_comgra_did_not_write_is_an_error(lens: ComgraInspector, tmp_path: Path) -> None:
    with lens.record(OUT, out=tmp_path / "out") as recording, recording.step("a"):
        lens.model(X)
    (path,) = (tmp_path / "out").glob("**/0__a/0.msgpack")
    for content in (b"", b"\x93\x01\x02\x03", path.read_bytes()[:-5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            recording.table()
    with pytest.raises(InputError, match="no such folder"):
        read_table(tmp_path / "nowhere")


# ---- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"per_sample": -1}, "per_sample"),
        ({"per_sample": True}, "per_sample"),
        ({"when": 0}, "when=0"),
        ({"when": "often"}, "when='often'"),
        ({"when": None}, "when=None"),
        ({"kpis": ["mean"]}, "no option 'kpis'"),
        ({"out": __file__}, "cannot be made"),
        ({"out": Path(__file__).parent}, "new or empty"),
    ],
)
def test_an_option_that_cannot_be(lens: ComgraInspector, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        lens.record(OUT, **options)


def test_what_has_no_figures_is_refused_by_name() -> None:
    for fn, text in (
        (lambda x: x.sum(), "step.loss"),
        (lambda x: x[:, :0], "empty"),
        (lambda x: x + 1j, "complex"),
        (lambda x: None, "no site ran"),
    ):
        model = _Fn(fn)
        with ComgraInspector(model) as lens, lens.record(OUT, parameters=False) as recording:
            with pytest.raises(SiteError, match=text) as error, recording.step("a"):
                model(X)
            assert OUT in str(error.value)
            assert not model._forward_hooks
            assert recording.table().empty


def test_mistakes_inside_a_step(lens: ComgraInspector) -> None:
    recording = lens.record(OUT, gradients=False)
    for act, text in (
        (lambda step: step.loss(X), "one real number"),
        (lambda step: (step.loss(1.0), step.loss(2.0)), "'loss' already"),
        (lambda step: step.gradients("g"), "takes no gradients"),
        (lambda step: step.decide("b"), "cannot become 'b'"),
        (lambda step: step.decide("a", ["x"]), "per_sample=N"),
    ):
        with pytest.raises(InputError, match=text), recording.step("a") as step:
            act(step)
    with pytest.raises(InputError, match="200"), recording.step("x" * 201):
        pass
    sampled = lens.record(OUT, per_sample=1)
    with pytest.raises(InputError, match="3 samples"), sampled.step("a", ["x"] * 3):
        lens.model(X)
    assert recording.table().empty
    assert sampled.table().empty


def test_closing_the_inspector_closes_its_recordings(lens: ComgraInspector) -> None:
    recording, running = lens.record(OUT), lens.record(OUT)
    with running.step("a"):
        lens.model(X)
        lens.close()
    assert running.table().empty  # a step that was running is dropped
    with pytest.raises(ClosedError), recording.step("a"):
        pass


def test_attention_after_softmax_is_refused_and_found_where_the_error_says() -> None:
    model, tokenizer = tiny_model("llama", attn_implementation="eager")
    with open_inspector("comgra", model, tokenizer) as lens:
        with pytest.raises(UnsupportedError, match="module:PATH:output"):
            lens.record("blocks.0.attn.pattern")
        with pytest.raises(UnsupportedError, match=r"capture\.native"):
            lens.record("native:x")
        with lens.record("module:model.layers.*.self_attn:output", parameters=False) as recording:
            with recording.step("a"):
                model(torch.arange(1, 25).reshape(3, 8))
            table = recording.table()
        with pytest.raises(UnsupportedError, match=r"lens\.record"):
            lens.run(torch.arange(1, 25).reshape(3, 8))
    got = recorded(table, 0, "activation", "module:model.layers.1.self_attn:output[1]")
    assert got["mean", "batch_mean"] == pytest.approx(1 / 8, abs=1e-6)  # rows of 8 keys sum to 1


# ---- what comgra itself does


@pytest.mark.parametrize("name", ["comgra_in_place", "comgra_stale_gradients", "comgra_unfreezes"])
def test_a_defect_is_still_there(name: str) -> None:
    """Where one is gone, its fence may go."""
    found = importlib.import_module(f"crosslens.benchmarks.claims.{name}").main()
    assert found["holds"], found
    assert found["observed"].keys() == found["expected"].keys()
