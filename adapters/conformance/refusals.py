"""Guarantee 6: mistakes are refused before the model runs, with an error that names the site and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from crosslens.adapters.edits import Edit, add, apply, replace, scale, zero
from crosslens.adapters.errors import CrosslensError, EditError, InputError, SiteError, UnsupportedError
from crosslens.adapters.inspector import Inspector

from .kit import FAMILIES, Check, Context, Scene

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
R = "blocks.1.resid_post"
Z = "blocks.1.attn.z"


@dataclass(frozen=True)
class Mistake:
    """One mistake: what the user does, what must be raised, and what its text must say."""

    name: str
    act: Callable[[Inspector], Any]
    error: type[CrosslensError]
    says: tuple[str, ...]


def _value(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def _capture(*names: str) -> Callable[[Inspector], Any]:
    return lambda lens: lens.run(IDS, capture=list(names))


def _edit(make: Callable[[], Edit]) -> Callable[[Inspector], Any]:
    return lambda lens: lens.run(IDS, edits=[make()])


def _inputs(inputs: Any) -> Callable[[Inspector], Any]:
    return lambda lens: lens.run(inputs)


def mistakes(family: str) -> list[Mistake]:
    """The mistakes; all are made on a tiny model with 3 layers, d_model 32 and heads of 8."""
    site, edit, inp = SiteError, EditError, InputError
    found = [
        Mistake("misspelled-site", _capture("blocks.1.resid_pots"), site, ("blocks.1.resid_pots", R)),
        Mistake("misspelled-among-good-ones", _capture("embed", "blocks.1.mlp.ouput"), site, ("blocks.1.mlp.out",)),
        Mistake("layer-out-of-range", _capture("blocks.99.resid_post"), site, ("99", "3 layers", "blocks.2")),
        Mistake("negative-layer", _capture("blocks.-1.resid_post"), site, ("-1", "blocks.2.resid_post")),
        Mistake("glob-that-matches-nothing", _capture("blocks.*.atn.z"), site, ("blocks.*.atn.z", "nearest")),
        Mistake("unbalanced-brace", _capture("blocks.{0,1.attn.z"), site, ("brace", "blocks.{0,1.attn.z")),
        Mistake("site-that-is-no-name", lambda lens: lens.run(IDS, capture=[3]), site, ("3",)),  # type: ignore[list-item]
        Mistake("edit-of-misspelled-site", _edit(lambda: zero("blocks.1.attn.zz")), site, ("blocks.1.attn.zz", Z)),
        Mistake("until-misspelled", lambda lens: lens.run(IDS, until="blocks.1.nope"), site, ("blocks.1.nope",)),
        Mistake("until-many", lambda lens: lens.run(IDS, until="blocks.*.attn.z"), site, ("name one",)),
        Mistake("capture-after-until", lambda lens: lens.run(IDS, capture=["logits"], until=R), site, ("logits", R)),
        Mistake("head-out-of-range", _edit(lambda: zero(Z, heads=[4])), edit, (Z, "head 4", "4 heads", "0 to 3")),
        Mistake("head-slice-out-of-range", _edit(lambda: zero(Z, heads=slice(4, 5))), edit, (Z, "out of range")),
        Mistake("head-at-residual", _edit(lambda: zero(R, heads=[0])), edit, (R, "no head axis", "d_model")),
        Mistake("row-out-of-range", _edit(lambda: zero(R, rows=[2])), edit, (R, "row 2", "2 rows")),
        Mistake("unit-out-of-range", _edit(lambda: zero(R, units=[32])), edit, (R, "unit 32", "0 to 31")),
        Mistake("position-out-of-range", _edit(lambda: zero(R, positions=[4])), edit, (R, "position 4", "4 tokens")),
        Mistake("negative-position-too-far", _edit(lambda: zero(R, positions=[-5])), edit, (R, "-5")),
        Mistake("position-slice-out-of-range", _edit(lambda: zero(R, positions=slice(0, 9))), edit, (R, "slice")),
        Mistake("fractional-position", _edit(lambda: zero(R, positions=[1.0])), edit, (R, "integer")),  # type: ignore[list-item]
        Mistake("boolean-mask", _edit(lambda: zero(R, positions=torch.ones(4).bool())), edit, (R, "integer")),
        Mistake("nothing-selected", _edit(lambda: zero(R, positions=[])), edit, (R, "no position")),
        Mistake("selected-twice", _edit(lambda: zero(R, units=[1, -31])), edit, (R, "twice")),
        Mistake("value-of-wrong-shape", _edit(lambda: replace(R, _value(2, 4, 31))), edit, (R, "(2, 4, 31)", "(2, 4, 32)")),
        Mistake("value-that-would-broadcast", _edit(lambda: replace(R, _value(32))), edit, (R, "(32,)", "(2, 4, 32)")),
        Mistake("value-without-selected-axis", _edit(lambda: replace(R, _value(2, 32), positions=[0])), edit, (R, "(2, 1, 32)")),
        Mistake("value-of-wrong-dtype", _edit(lambda: add(R, _value(2, 4, 32, dtype=torch.float32))), edit, (R, "float32", "float64")),
        Mistake("value-that-is-a-number", _edit(lambda: replace(R, 0.0)), edit, (R, "float", "(2, 4, 32)")),  # type: ignore[arg-type]
        Mistake("factor-that-is-no-number", _edit(lambda: scale(R, float("nan"))), edit, (R, "finite")),
        Mistake("function-that-is-none", _edit(lambda: apply(R, None)), edit, (R, "function")),  # type: ignore[arg-type]
        Mistake("steps-outside-generation", _edit(lambda: zero(R, steps=[0])), edit, (R, "generate")),
        Mistake("edit-that-is-none", lambda lens: lens.run(IDS, edits=["blocks.1.attn.z"]), edit, ("replace", "zero")),  # type: ignore[list-item]
        Mistake("one-dimensional-ids", _inputs(torch.tensor([1, 2])), inp, ("(2,)", "(batch, pos)")),
        Mistake("fractional-ids", _inputs(torch.ones(1, 3)), inp, ("float32", "int64")),
        Mistake("id-outside-vocabulary", _inputs(torch.tensor([[10**6]])), inp, ("1000000", "vocabulary")),
        Mistake("no-tokens", _inputs(torch.zeros(1, 0, dtype=torch.long)), inp, ("no token",)),
        Mistake("mask-of-wrong-shape", _inputs({"input_ids": IDS, "attention_mask": IDS[:, :2]}), inp, ("(2, 2)", "(2, 4)")),
        Mistake("row-that-is-all-padding", _inputs({"input_ids": IDS, "attention_mask": torch.tensor([[1] * 4, [0] * 4])}), inp, ("row 1",)),
        Mistake("unknown-input-key", _inputs({"input_ids": IDS, "labels": IDS}), inp, ("labels",)),
        Mistake("run-read-where-not-captured", lambda lens: lens.run(IDS, capture=[R])["embed"], site, ("embed", R)),
    ]  # fmt: skip
    if family == "gpt_neox":
        mid = _capture("blocks.1.resid_mid")
        found.append(Mistake("resid-mid-of-parallel-blocks", mid, site, ("resid_mid", "parallel", "resid_pre")))
    return found


def checks(context: Context, families: Sequence[str] = FAMILIES) -> Iterator[Check]:
    """One check a mistake."""
    for family in families:
        scene = Scene(family, torch.float64)
        for mistake in [*mistakes(family), *_in_generation()]:
            yield Check(
                f"refuses/{mistake.name}/{family}", "refuses", (),
                partial(_refused, scene=scene, mistake=mistake), context,
            )  # fmt: skip
        yield Check(
            f"refuses/function-of-wrong-shape/{family}", "refuses", ("edit.apply",),
            partial(_bad_function, scene=scene), context,
        )  # fmt: skip


def _in_generation() -> list[Mistake]:
    def generate(edit: Edit, new: int = 3) -> Callable[[Inspector], Any]:
        return lambda lens: lens.generate(IDS, max_new_tokens=new, edits=[edit])

    none = Mistake("no-new-tokens", lambda lens: lens.generate(IDS, max_new_tokens=0), InputError, ("max_new_tokens",))
    return [
        none,
        Mistake(
            "position-never-generated", generate(zero(R, positions=[6])), EditError, (R, "position 6", "generated")
        ),
        Mistake("step-never-taken", generate(zero(R, steps=[3])), EditError, (R, "step 3")),
        Mistake("value-for-every-position", generate(add(R, _value(2, 4, 32))), EditError, (R, "(2, 1, 32)")),
    ]


def _refused(context: Context, scene: Scene, mistake: Mistake) -> None:
    lens = context.lens(scene)
    forwards: list[int] = []
    original = lens._forward

    def counted(plan: Any) -> Any:
        forwards.append(1)
        return original(plan)

    lens._forward = counted  # type: ignore[method-assign]
    try:
        mistake.act(lens)
    except UnsupportedError as error:
        # A mistake in what the backend does not do at all: that it says so is the refusal
        lacks = [name for name, support in context.backend.supports().items() if not support]
        assert any(f"does not support {name} " in str(error) for name in lacks), f"it is supported: {error}"
    except CrosslensError as error:
        assert isinstance(error, mistake.error), f"{type(error).__name__}, must be {mistake.error.__name__}: {error}"
        missing = [text for text in mistake.says if text not in str(error)]
        assert not missing, f"the error does not mention {missing}: {error}"
    else:
        raise AssertionError("nothing was raised")
    finally:
        del lens._forward
    if mistake.name != "run-read-where-not-captured":
        assert not forwards, "the model ran before the mistake was refused"


def _bad_function(context: Context, scene: Scene) -> None:
    """What a function returns is known only when it runs; it is refused there, and no result comes back."""
    for fn, text in (
        (lambda p: None, "NoneType"),
        (lambda p: p[:, :1], "(2, 1, 32)"),
        (lambda p: p.float(), "float32"),
    ):
        try:
            context.lens(scene).run(IDS, edits=[apply(R, fn)])  # type: ignore[arg-type]
        except EditError as error:
            assert R in str(error), f"the error does not name {R}: {error}"
            assert text in str(error), f"the error does not mention {text}: {error}"
        else:
            raise AssertionError(f"a function that returns {text} was accepted")
