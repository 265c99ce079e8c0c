"""Guarantee 7: the model, the tokenizer and the process are as they were found, however it ended."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosslens.adapters.edits import apply, scale
from crosslens.adapters.inspector import Inspector

from .kit import FAMILIES, Check, Context, Scene

Snapshot = dict[str, Any]


def checks(context: Context, families: Sequence[str] = FAMILIES) -> Iterator[Check]:
    """Residue checks: what happens in the middle x family."""
    for family in families:
        for what, needs, act in (
            ("after-success", ("capture.residual", "edit.scale", "gradients", "generate"), _succeed),
            ("after-exception-in-edit", ("edit.apply",), partial(_fail, kind=_Oops)),
            (
                "after-keyboard-interrupt",
                ("edit.apply",),
                partial(_fail, kind=KeyboardInterrupt),
            ),
            ("after-exception-in-generation", ("generate.edit",), _fail_in_generation),
            ("after-exception-in-model", ("capture.residual", "coexist.hooks"), _fail_in_model),
            ("without-close", ("capture.residual", "capture.pattern"), _never_closed),
        ):
            yield Check(
                f"no-trace/{what}/{family}", "no-trace", needs,
                partial(_residue, family=family, act=act), context,
            )  # fmt: skip
        yield Check(
            f"no-trace/dropout-and-random-state/{family}", "no-trace", ("capture.residual", "dropout"),
            partial(_random_state, family=family), context,
        )  # fmt: skip


class _Oops(Exception):
    """What a user's own function raises."""


def snapshot(model: nn.Module, tokenizer: Any, inputs: dict[str, Tensor]) -> Snapshot:
    """Everything that a library could leave changed, by name; two of them compare with `differences`."""
    found: Snapshot = {}
    for path, module in model.named_modules():
        state = vars(module)
        at = path or "model"
        found[f"{at}: class"] = type(module)
        found[f"{at}: attributes"] = sorted(state)
        found[f"{at}: forward"] = getattr(module.forward, "__func__", module.forward)
        found[f"{at}: training"] = module.training
        found[f"{at}: children"] = [(name, id(child)) for name, child in module.named_children()]
        for name, value in state.items():
            if name.endswith("_hooks") and isinstance(value, dict):
                found[f"{at}: {name}"] = [id(hook) for hook in value.values()]
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name}: tensor"] = (id(p), p.data_ptr(), p._version, p.requires_grad, p.dtype, p.grad is None)
        found[f"{name}: value"] = p.detach().clone()
    found["state_dict keys"] = list(model.state_dict())
    config: Any = model.config
    found["config"] = config.to_dict()
    found["attention implementation"] = config._attn_implementation
    found["tokenizer"] = {k: repr(v) for k, v in vars(tokenizer).items() if not k.startswith("_tokenizer")}
    found["tokenizer backend"] = tokenizer._tokenizer.to_str()
    found["padding side"] = tokenizer.padding_side
    found["grad mode"] = torch.is_grad_enabled()
    found["inference mode"] = torch.is_inference_mode_enabled()
    found["torch random state"] = torch.get_rng_state()
    found["python random state"] = random.getstate()
    found["numpy random state"] = repr(np.random.get_state())
    found["default dtype"] = torch.get_default_dtype()
    found["warning filters"] = len(warnings.filters)
    with torch.no_grad():
        found["logits"] = model(**inputs).logits
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Names of what changed."""
    changed = [name for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        if not (torch.equal(a, b) if isinstance(a, Tensor) else a == b):
            changed.append(name)
    return sorted(changed)


def _residue(context: Context, family: str, act: Callable[..., None]) -> None:
    scene = Scene(family, torch.float64)
    model, tokenizer = context.fresh(family, attention="sdpa")
    fired: list[int] = []
    if context.backend.supports()["coexist.hooks"]:  # where not, a run on a model with hooks is refused
        model.lm_head.register_forward_hook(lambda *_: fired.append(1))  # a hook of the user's own must survive
    inputs = {"input_ids": scene.ids.clone()}
    before = snapshot(model, tokenizer, inputs)
    lens = context.backend(model, tokenizer)
    act(lens, scene)
    during = differences(before, snapshot(model, tokenizer, inputs))
    if act is not _never_closed:
        lens.close()
    after = differences(before, snapshot(model, tokenizer, inputs))
    assert not after, f"changed after close: {after[:6]}"
    assert "logits" not in during, "the model computes something else while the inspector is open"
    fired.clear()
    model(**inputs)
    if context.backend.supports()["coexist.hooks"]:
        assert fired == [1], "the user's own hook fires no more, or twice"


def _succeed(lens: Inspector, scene: Scene) -> None:
    lens.run("abc", capture=["blocks.*.resid_post"], edits=[scale("blocks.0.mlp.out", 2.0)])
    lens.gradients(scene.inputs, ["embed"], lambda logits: logits[:, -1, 3])
    lens.generate(scene.inputs, max_new_tokens=2)


def _fail(lens: Inspector, scene: Scene, kind: type[BaseException]) -> None:
    def raises(part: Tensor) -> Tensor:
        raise kind("from inside an edit")

    plain = lens.run(scene.inputs).logits
    try:
        lens.run(scene.inputs, capture=["blocks.0.resid_post"], edits=[apply("blocks.1.mlp.out", raises)])
    except kind as error:
        assert type(error) is kind, f"the user's {kind.__name__} became {type(error).__name__}"
    else:
        raise AssertionError(f"{kind.__name__} raised inside an edit was swallowed")
    assert torch.equal(lens.run(scene.inputs).logits, plain), "the next run is not clean"


def _fail_in_generation(lens: Inspector, scene: Scene) -> None:
    calls: list[int] = []

    def raises(part: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise _Oops("in the third step")
        return part

    plain = lens.run(scene.inputs).logits
    try:
        lens.generate(scene.inputs, max_new_tokens=5, edits=[apply("blocks.1.mlp.out", raises)])
    except _Oops:
        pass
    else:
        raise AssertionError("an exception inside an edit was swallowed while generating")
    assert torch.equal(lens.run(scene.inputs).logits, plain), "the next run is not clean"


def _fail_in_model(lens: Inspector, scene: Scene) -> None:
    """A user's own hook on the model raises: an out-of-memory error in the middle looks like this."""
    armed = [True]

    def explode(*_: Any) -> None:
        if armed[0]:
            raise _Oops("inside the model")

    handle = lens.model.get_submodule("lm_head").register_forward_hook(explode)
    with type(lens)(lens.model, lens.tokenizer) as second:  # opened with the hook there, as a shadow would see it
        try:
            second.run(scene.inputs, capture=["blocks.0.resid_post"])
        except _Oops:
            pass
        else:
            raise AssertionError("an exception inside the model was swallowed")
        armed[0] = False
        plain = lens.run(scene.inputs).logits
        assert torch.equal(second.run(scene.inputs).logits, plain), "the next run is not clean"
    handle.remove()


def _never_closed(lens: Inspector, scene: Scene) -> None:
    """Between calls too, the model is as it was found."""
    lens.run(scene.inputs, capture=["blocks.*.resid_post", "blocks.0.attn.pattern"])


def _random_state(context: Context, family: str) -> None:
    scene = Scene(family, torch.float64)
    model, tokenizer = context.fresh(family)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.5
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
    model.train()
    with context.backend(model, tokenizer) as lens:
        state = torch.get_rng_state()
        first = lens.run(scene.inputs, capture=["blocks.1.resid_post"])
        assert torch.equal(torch.get_rng_state(), state), "the random state moved"
        second = lens.run(scene.inputs, capture=["blocks.1.resid_post"])
        assert torch.equal(first.logits, second.logits), "same random state, other result"
        assert model.training, "the model left training mode"
        moved = (first.logits - scene.truth.logits).abs().max().item()
        assert moved > 1e-3, "dropout did not act although the model is in training mode"
        model.eval()
        scene.assert_close(lens.run(scene.inputs).logits, scene.truth.logits, "logits", "after eval()")
