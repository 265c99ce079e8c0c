"""Mistakes with TransformerLens: a `TransformerBridge`, `run_with_cache`, `run_with_hooks`, as in its main demo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import NEW, Scene

DISTRIBUTION = "transformer-lens"
IMPORTS = ("transformer_lens.model_bridge.sources",)
ABSENT = {"layer_slice_out_of_range": "a layer is named by its number"}
IMPOSSIBLE = {
    "stale_name": "run_with_cache keeps what its filter lets through",
    "forgotten_save": "run_with_cache keeps what its filter lets through",
    "tuple_idiom": "a hook is given the tensor, whatever the module returns",
}
CULPRITS = {"wrong_keyword": r"\bfwd_hook\b"}
DOCUMENTED = {
    "edit_returns_none": (
        "transformer_lens.model_bridge.TransformerBridge.add_hook",
        "(activation, hook) -> activation | None",
    ),
    "training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules"),
}
OUT, RESID, Z = "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"


def _bridge(model: Any) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config, dtype=torch.float32)


def _edited(scene: Scene, name: str, hook: Any, ids: Tensor | None = None, **options: Any) -> Any:
    with torch.no_grad():
        logits: Tensor = _bridge(scene.llama()).run_with_hooks(
            scene.ids if ids is None else ids, fwd_hooks=[(name, hook)], **options
        )
    return logits


def _zeros(act: Tensor, hook: Any) -> Any:
    return torch.zeros_like(act)


def misspelled_site(scene: Scene) -> Any:
    return _edited(scene, "blocks.1.hook_mpl_out", _zeros)


def misspelled_capture(scene: Scene) -> Any:
    names = ["blocks.0.mlp.hook_out", "blocks.1.mpl.hook_out"]
    with torch.no_grad():
        _, cache = _bridge(scene.llama()).run_with_cache(scene.ids, names_filter=names)
    return torch.stack([act for name, act in cache.items() if name.endswith("hook_out")])


def pattern_without_match(scene: Scene) -> Any:
    with torch.no_grad():
        _, cache = _bridge(scene.llama()).run_with_cache(scene.ids, names_filter=lambda name: name.endswith("mpl_out"))
    return torch.stack(list(cache.values()))


def layer_out_of_range(scene: Scene) -> Any:
    return _edited(scene, "blocks.3.hook_mlp_out", _zeros)


def negative_layer(scene: Scene) -> Any:
    return _edited(scene, "blocks.-1.hook_mlp_out", _zeros)


def wrong_keyword(scene: Scene) -> Any:
    with torch.no_grad():
        return _bridge(scene.llama()).run_with_hooks(scene.ids, fwd_hook=[(OUT, _zeros)])


def wrong_input_keyword(scene: Scene) -> Any:
    with torch.no_grad():
        return _bridge(scene.gpt2())(scene.left, attention_masks=scene.mask)[:, -1]


def _zero_head(scene: Scene, head: Any, name: str = Z) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, :, head] = 0
        return act

    return _edited(scene, name, edit)


def head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, 4)


def head_slice_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, slice(4, 5))


def kv_head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, 3, "blocks.1.attn.hook_v")


def negative_head(scene: Scene) -> Any:
    return _zero_head(scene, -1)


def _patch(scene: Scene, where: Any, value: Tensor) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, where] = value
        return act

    return _edited(scene, RESID, edit)


def position_out_of_range(scene: Scene) -> Any:
    return _patch(scene, 7, scene.vector[0, 0])


def position_slice_out_of_range(scene: Scene) -> Any:
    return _patch(scene, slice(7, 8), scene.vector)


def negative_position(scene: Scene) -> Any:
    return _patch(scene, -1, scene.vector[0, 0])


def _set_unit(scene: Scene, unit: Any) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[..., unit] = 20.0
        return act

    return _edited(scene, "blocks.1.mlp.hook_post", edit)


def unit_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, 80)


def unit_slice_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, slice(80, 81))


def wrong_shape(scene: Scene) -> Any:
    return _patch(scene, 6, scene.vector[0, 0, :31])


def broadcastable(scene: Scene) -> Any:
    return _edited(scene, OUT, lambda act, hook: scene.vector)


def wrong_dtype(scene: Scene) -> Any:
    return _edited(scene, RESID, lambda act, hook: act + scene.vector.double())


def edit_returns_tuple(scene: Scene) -> Any:
    return _edited(scene, RESID, lambda act, hook: (act + scene.vector,))


def edit_returns_none(scene: Scene) -> Any:
    def edit(act: Tensor, hook: Any) -> None:
        act = act + scene.vector

    return _edited(scene, RESID, edit)


def read_too_early(scene: Scene) -> Any:
    bridge = _bridge(scene.llama())
    cache, hooks, _ = bridge.get_caching_hooks(names_filter="blocks.1.mlp.hook_out")
    with bridge.hooks(fwd_hooks=hooks):
        return cache["blocks.1.mlp.hook_out"]


def read_not_captured(scene: Scene) -> Any:
    with torch.no_grad():
        _, cache = _bridge(scene.llama()).run_with_cache(scene.ids, names_filter=RESID)
    return cache["blocks.2.hook_resid_post"]


def read_after_stop(scene: Scene) -> Any:
    with torch.no_grad():
        _, cache = _bridge(scene.llama()).run_with_cache(scene.ids, stop_at_layer=2)
    return cache["resid_post", 2]


def out_of_order(scene: Scene) -> Any:
    names = ["blocks.2.hook_resid_post", "blocks.0.hook_resid_post"]
    with torch.no_grad():
        _, cache = _bridge(scene.llama()).run_with_cache(scene.ids, names_filter=names)
    return torch.stack([cache[name] for name in names])


def in_place(scene: Scene) -> Any:
    bridge, site = _bridge(scene.llama()), "blocks.0.hook_resid_post"
    with torch.no_grad(), bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda act, hook: act.mul_(2))]):
        _, cache = bridge.run_with_cache(scene.ids, names_filter=site)
    return cache[site]


def padded_without_mask(scene: Scene) -> Any:
    with torch.no_grad():
        return _bridge(scene.gpt2())(scene.left)[:, -1]


def left_padding(scene: Scene) -> Any:
    with torch.no_grad():
        return _bridge(scene.gpt2())(scene.left, attention_mask=scene.mask)[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, -1] = scene.vector[0, 0]
        return act

    logits = _edited(scene, RESID, edit, scene.right, attention_mask=scene.right_mask)
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, position] = scene.vector[0, 0]
        return act

    bridge = _bridge(scene.llama())
    with bridge.hooks(fwd_hooks=[(RESID, edit)]):
        return _tokens(bridge, scene)


def _tokens(bridge: Any, scene: Scene) -> Any:
    found: Tensor = bridge.generate(scene.ids, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False)
    return found[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    bridge = _bridge(scene.llama())
    with bridge.hooks(fwd_hooks=[(RESID, lambda act, hook: kept.update(hidden=act))]):
        _tokens(bridge, scene)
    return kept["hidden"]


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _edited(scene, OUT, _zeros, ids)


def unsupported_module(scene: Scene) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    net, x = scene.net()
    _, cache = TransformerBridge.boot_transformers("net", hf_model=net).run_with_cache(x)
    return cache["second.hook_out"]


def never_read(scene: Scene) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, 1] = 0
        return act

    with torch.no_grad():
        hooks = [("blocks.1.attn.hook_pattern", edit)]
        return _bridge(scene.gpt2()).run_with_hooks(scene.ids, fwd_hooks=hooks)


def two_wrappers(scene: Scene) -> Any:
    model = scene.llama()
    first, second = _bridge(model), _bridge(model)
    with torch.no_grad():
        second.run_with_hooks(scene.ids, fwd_hooks=[(OUT, _zeros)])
        return first(scene.ids)


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    with torch.no_grad():
        _bridge(model).run_with_hooks(scene.ids, fwd_hooks=[("blocks.2.hook_mlp_out", _zeros)])
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    def edit(act: Tensor, hook: Any) -> Tensor:
        act[:, 5] = scene.vector[0, 0]  # the first prompt is too short for it
        return act

    bridge = _bridge(scene.llama())
    with torch.no_grad():
        try:
            bridge.run_with_hooks(scene.ids[:, :4], fwd_hooks=[(RESID, edit)])
        except IndexError:
            pass
        return bridge(scene.other)


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return _bridge(scene.gpt2().train())(scene.ids)


def frozen_parameters(scene: Scene) -> Any:
    kept: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: Any) -> None:
        act.retain_grad()
        kept["hidden"] = act

    bridge = _bridge(scene.llama().requires_grad_(False))
    logits = bridge.run_with_hooks(scene.ids, fwd_hooks=[(RESID, keep)])
    (logits[0, -1, 5] - logits[0, -1, 9]).backward()
    return kept["hidden"].grad
