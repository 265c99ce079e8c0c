"""Mistakes with torchlens: `trace` and `record` with selectors and `intervene=`, as its README teaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import D_HEAD, NEW, Scene

DISTRIBUTION = "torchlens"
IMPORTS = ("torchlens",)
ABSENT = {"layer_slice_out_of_range": "a layer is named by its number"}
IMPOSSIBLE = {
    "read_too_early": "a trace exists only after the forward",
    "forgotten_save": "a trace saves everything unless it is told less",
    "stale_name": "a trace saves everything unless it is told less",
    "tuple_idiom": "a hook is given each tensor by itself, whatever the module returns",
}
CULPRITS = {"wrong_keyword": r"\bintervention\b"}
DOCUMENTED = {"training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules")}
NOTES = {"read_after_stop": "record(halt=) does not stop at a module's own end: block 2 has run"}
PLAIN = {"use_cache": False}
BLOCK, MLP = "model.layers.1", "model.layers.1.mlp"


def _out(log: Any) -> Any:
    return log[log.output_layers[0]].out


def _edited(scene: Scene, where: Any, edit: Any, ids: Tensor | None = None, model: Any = None, **options: Any) -> Any:
    import torchlens as tl

    selector = tl.module(where) if isinstance(where, str) else where
    model = scene.llama() if model is None else model
    given = scene.ids if ids is None else ids
    with torch.no_grad():
        return _out(tl.trace(model, given, {**PLAIN, **options}, intervene=tl.when(selector, edit)))


def _zeros(act: Tensor, *, hook: Any) -> Any:
    return torch.zeros_like(act)


def misspelled_site(scene: Scene) -> Any:
    return _edited(scene, "model.layers.1.mpl", _zeros)


def _recorded(scene: Scene, selector: Any) -> Any:
    import torchlens as tl

    with torch.no_grad():
        recording = tl.record(scene.llama(), scene.ids, PLAIN, save=selector)
    return torch.stack([each.ram_payload for each in recording])


def misspelled_capture(scene: Scene) -> Any:
    import torchlens as tl

    return _recorded(scene, tl.module("model.layers.0.mlp") | tl.module("model.layers.1.mpl"))


def pattern_without_match(scene: Scene) -> Any:
    return _recorded(scene, lambda at: (getattr(at, "address", None) or "").endswith(".mpl"))


def layer_out_of_range(scene: Scene) -> Any:
    return _edited(scene, "model.layers.3.mlp", _zeros)


def negative_layer(scene: Scene) -> Any:
    return _edited(scene, "model.layers.-1.mlp", _zeros)


def wrong_keyword(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        return _out(tl.trace(scene.llama(), scene.ids, PLAIN, intervention=tl.when(tl.module(MLP), _zeros)))


def wrong_input_keyword(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        return _out(tl.trace(scene.gpt2(), scene.left, {**PLAIN, "attention_masks": scene.mask}))[:, -1]


def _zero_head(scene: Scene, head: Any) -> Any:
    import torchlens as tl

    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, head] = 0  # batch, head, position, unit
        return act

    model = scene.llama()
    model.set_attn_implementation("sdpa")
    attention = tl.in_module(f"{BLOCK}.self_attn") & tl.func("scaled_dot_product_attention")
    return _edited(scene, attention, edit, model=model)


def head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, 4)


def head_slice_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, slice(4, 5))


def kv_head_out_of_range(scene: Scene) -> Any:
    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[..., 3 * D_HEAD : 4 * D_HEAD] = 0
        return act

    return _edited(scene, f"{BLOCK}.self_attn.v_proj", edit)


def negative_head(scene: Scene) -> Any:
    return _zero_head(scene, -1)


def _patch(scene: Scene, where: Any, value: Tensor, **run: Any) -> Any:
    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, where] = value
        return act

    return _edited(scene, BLOCK, edit, **run)


def position_out_of_range(scene: Scene) -> Any:
    return _patch(scene, 7, scene.vector[0, 0])


def position_slice_out_of_range(scene: Scene) -> Any:
    return _patch(scene, slice(7, 8), scene.vector)


def negative_position(scene: Scene) -> Any:
    return _patch(scene, -1, scene.vector[0, 0])


def _set_unit(scene: Scene, unit: Any) -> Any:
    import torchlens as tl

    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[..., unit] = 20.0
        return act

    return _edited(scene, tl.in_module(MLP) & tl.func("mul"), edit)


def unit_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, 80)


def unit_slice_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, slice(80, 81))


def wrong_shape(scene: Scene) -> Any:
    return _patch(scene, 6, scene.vector[0, 0, :31])


def broadcastable(scene: Scene) -> Any:
    return _edited(scene, MLP, lambda act, *, hook: scene.vector)


def wrong_dtype(scene: Scene) -> Any:
    return _edited(scene, BLOCK, lambda act, *, hook: act + scene.vector.double())


def edit_returns_tuple(scene: Scene) -> Any:
    return _edited(scene, BLOCK, lambda act, *, hook: (act + scene.vector,))


def edit_returns_none(scene: Scene) -> Any:
    def edit(act: Tensor, *, hook: Any) -> None:
        act = act + scene.vector

    return _edited(scene, BLOCK, edit)


def read_not_captured(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        log = tl.trace(scene.llama(), scene.ids, PLAIN, save=tl.module(BLOCK))
    return log["model.layers.2"].out


def read_after_stop(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        recording = tl.record(scene.llama(), scene.ids, PLAIN, save=tl.module("model.layers.2"), halt=tl.module(BLOCK))
    return next(each.ram_payload for each in recording)


def out_of_order(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        log = tl.trace(scene.llama(), scene.ids, PLAIN)
    return torch.stack([log[f"model.layers.{layer}"].out for layer in (2, 0)])


def in_place(scene: Scene) -> Any:
    import torchlens as tl

    model = scene.llama()
    model.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0].mul_(2),))
    with torch.no_grad():
        log = tl.trace(model, scene.ids, PLAIN)
    return log["model.layers.0"].out


def padded_without_mask(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        return _out(tl.trace(scene.gpt2(), scene.left, PLAIN))[:, -1]


def left_padding(scene: Scene) -> Any:
    import torchlens as tl

    with torch.no_grad():
        return _out(tl.trace(scene.gpt2(), scene.left, {**PLAIN, "attention_mask": scene.mask}))[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    logits = _patch(scene, -1, scene.vector[0, 0], ids=scene.right, attention_mask=scene.right_mask)
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    import torchlens as tl

    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, position] = scene.vector[0, 0]
        return act

    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    log = tl.trace(scene.llama().generate, scene.ids, options, intervene=tl.when(tl.module(f"owner.{BLOCK}"), edit))
    return _out(log)[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    import torchlens as tl

    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    log = tl.trace(scene.llama().generate, scene.ids, options)
    return log[f"owner.{BLOCK}"].out


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _edited(scene, MLP, _zeros, ids)


def unsupported_module(scene: Scene) -> Any:
    import torchlens as tl

    net, x = scene.net()
    with torch.no_grad():
        found: Tensor = tl.trace(net, x)["second"].out
    return found


def never_read(scene: Scene) -> Any:
    def edit(act: Tensor, *, hook: Any) -> Tensor:
        if act.ndim == 4:  # the weights, beside what attention adds
            act = act.clone()
            act[:, 1] = 0
        return act

    return _edited(scene, "transformer.h.1.attn", edit, model=scene.gpt2())


def two_wrappers(scene: Scene) -> Any:
    import torchlens as tl

    model = scene.llama()
    with torch.no_grad():
        first = tl.fastlog.Recorder(model, save=tl.func("silu"))
        tl.trace(model, scene.ids, PLAIN, intervene=tl.when(tl.module(MLP), _zeros))
        with first:
            output = first.log(scene.ids, PLAIN)
    return output.logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _edited(scene, "model.layers.2.mlp", _zeros, model=model)
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    def edit(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, 5] = scene.vector[0, 0]  # the first prompt is too short for it
        return act

    model = scene.llama()
    try:
        _edited(scene, BLOCK, edit, scene.ids[:, :4], model)
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    import torchlens as tl

    torch.manual_seed(0)
    with torch.no_grad():
        return _out(tl.trace(scene.gpt2().train(), scene.ids, PLAIN))


def frozen_parameters(scene: Scene) -> Any:
    import torchlens as tl

    capture = tl.options.CaptureOptions(save_grads=tl.module(BLOCK))
    log = tl.trace(scene.llama().requires_grad_(False), scene.ids, PLAIN, capture=capture)
    logits = _out(log)
    log.log_backward(logits[0, -1, 5] - logits[0, -1, 9])
    return log[BLOCK].grad
