"""Mistakes with tdhook: a `HookSession` with `Target`s, as its tutorial of the same name teaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import D_HEAD, D_MLP, D_MODEL, NEW, Scene

DISTRIBUTION = "tdhook"
IMPORTS = ("tdhook.session", "tdhook.targets", "tdhook.latent")
ABSENT = {
    "layer_slice_out_of_range": "a layer is named by its number",
    "head_slice_out_of_range": "a Target takes indices, no slices",
    "position_slice_out_of_range": "a Target takes indices, no slices",
    "unit_slice_out_of_range": "a Target takes indices, no slices",
}
IMPOSSIBLE = {
    "tuple_idiom": "a Target at a tuple is refused until it says which item is meant",
    "forgotten_save": "capture() keeps what passes",
    "stale_name": "capture() keeps what passes",
}
DOCUMENTED = {"training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules")}
CULPRITS = {"wrong_keyword": r"\bdirections\b"}
BLOCK, MLP = "model.layers.1", "model.layers.1.mlp"


def _target(path: str, indices: Any = None, axis: int = -1, **options: Any) -> Any:
    from tdhook.targets import Target

    return Target(path, "activation", axis, tuple(range(D_MODEL)) if indices is None else tuple(indices), **options)


def _session(model: Any) -> Any:
    from tdhook.session import HookSession

    return HookSession(model)


def _replaced(model: Any, target: Any, value: Any, ids: Tensor, *, run: Any = None, **options: Any) -> Any:
    with torch.no_grad(), _session(model) as session:
        session.replace(target, value, **options)
        logits: Tensor = model(ids, **(run or {})).logits
    return logits


def misspelled_site(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target("model.layers.1.mpl"), 0.0, scene.ids)


def misspelled_capture(scene: Scene) -> Any:
    model = scene.llama()
    with torch.no_grad(), _session(model) as session:
        kept = [session.capture(_target(path)) for path in ("model.layers.0.mlp", "model.layers.1.mpl")]
        model(scene.ids)
    return torch.stack([each.values[0] for each in kept])


def pattern_without_match(scene: Scene) -> Any:
    from tdhook.latent import ActivationCaching
    from tensordict import TensorDict

    caching = ActivationCaching(r"model\.layers\.\d\.mpl$").prepare(
        scene.llama(), in_keys=["input_ids"], out_keys=["out"]
    )
    with torch.no_grad(), caching as hooked:
        hooked(TensorDict({"input_ids": scene.ids}, batch_size=[1]))
        cache = hooked.hooking_context.cache
        return torch.stack([cache[key] for key in cache.keys()])  # noqa: SIM118  a TensorDict


def layer_out_of_range(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target("model.layers.3.mlp"), 0.0, scene.ids)


def negative_layer(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target("model.layers[-1].mlp"), 0.0, scene.ids)


def wrong_keyword(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(MLP), 0.0, scene.ids, directions="fwd")


def wrong_input_keyword(scene: Scene) -> Any:
    model = scene.gpt2()
    with torch.no_grad(), _session(model) as session:
        session.capture(_target("transformer.h.1"))
        return model(scene.left, attention_masks=scene.mask).logits[:, -1]


def _zero_head(scene: Scene, head: int) -> Any:
    units = range(head * D_HEAD, (head + 1) * D_HEAD)
    return _replaced(scene.llama(), _target(f"{BLOCK}.self_attn.o_proj", units), 0.0, scene.ids, direction="fwd_pre")


def head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, 4)


def kv_head_out_of_range(scene: Scene) -> Any:
    units = range(3 * D_HEAD, 4 * D_HEAD)
    return _replaced(scene.llama(), _target(f"{BLOCK}.self_attn.v_proj", units), 0.0, scene.ids)


def negative_head(scene: Scene) -> Any:
    return _zero_head(scene, -1)


def position_out_of_range(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(BLOCK, [7], 1), scene.vector, scene.ids)


def negative_position(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(BLOCK, [-1], 1), scene.vector, scene.ids)


def unit_out_of_range(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(f"{MLP}.down_proj", [D_MLP]), 20.0, scene.ids, direction="fwd_pre")


def wrong_shape(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(BLOCK, [6], 1), scene.vector[..., :31], scene.ids)


def broadcastable(scene: Scene) -> Any:
    return _replaced(scene.llama(), _target(MLP), scene.vector, scene.ids)


def _steered(scene: Scene, edit: Any) -> Any:
    model, target = scene.llama(), _target(BLOCK)
    with torch.no_grad(), _session(model) as session:
        hidden = session.capture(target, detach=False)
        session.replace(target, hidden, transform=edit)
        logits: Tensor = model(scene.ids).logits
    return logits


def wrong_dtype(scene: Scene) -> Any:
    vector = scene.vector.double()
    return _steered(scene, lambda hidden: hidden + vector)


def edit_returns_tuple(scene: Scene) -> Any:
    return _steered(scene, lambda hidden: (hidden + scene.vector,))


def edit_returns_none(scene: Scene) -> Any:
    def edit(hidden: Tensor) -> None:
        hidden = hidden + scene.vector

    return _steered(scene, edit)


def read_too_early(scene: Scene) -> Any:
    model = scene.llama()
    with _session(model) as session:
        kept = session.capture(_target(MLP))
        found: Tensor = kept.values[0]
    return found


def read_not_captured(scene: Scene) -> Any:
    model = scene.llama()
    with torch.no_grad(), _session(model) as session:
        kept = {1: session.capture(_target(BLOCK))}
        model(scene.ids)
    return kept[2].values[0]


def read_after_stop(scene: Scene) -> Any:
    model = scene.llama()
    with torch.no_grad(), _session(model) as session:
        kept = session.capture(_target("model.layers.2"))
        session.stop(BLOCK)
        model(scene.ids)
    return kept.values[0]


def out_of_order(scene: Scene) -> Any:
    model = scene.llama()
    with torch.no_grad(), _session(model) as session:
        kept = [session.capture(_target(f"model.layers.{layer}")) for layer in (2, 0)]
        model(scene.ids)
    return torch.stack([each.values[0] for each in kept])


def in_place(scene: Scene) -> Any:
    model = scene.llama()
    with torch.no_grad(), _session(model) as session:
        kept = session.capture(_target("model.layers.0"))
        entering = session.capture(_target(BLOCK), direction="fwd_pre", detach=False)
        session.replace(_target(BLOCK), entering, direction="fwd_pre", transform=lambda hidden: hidden.mul_(2))
        model(scene.ids)
    return kept.values[0]


def padded_without_mask(scene: Scene) -> Any:
    model = scene.gpt2()
    with torch.no_grad(), _session(model) as session:
        session.capture(_target("transformer.h.1"))
        return model(scene.left).logits[:, -1]


def left_padding(scene: Scene) -> Any:
    model = scene.gpt2()
    with torch.no_grad(), _session(model) as session:
        session.capture(_target("transformer.h.1"))
        return model(scene.left, attention_mask=scene.mask).logits[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    run = {"attention_mask": scene.right_mask}
    logits = _replaced(scene.llama(), _target(BLOCK, [-1], 1), scene.vector, scene.right, run=run)
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    model = scene.llama()
    with _session(model) as session:
        session.replace(_target(BLOCK, [position], 1), scene.vector)
        return model.generate(scene.ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    model = scene.llama()
    with _session(model) as session:
        kept = session.capture(_target(BLOCK))
        model.generate(scene.ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return kept.values[0]


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _replaced(scene.llama(), _target(MLP), 0.0, ids)


def unsupported_module(scene: Scene) -> Any:
    net, x = scene.net()
    with torch.no_grad(), _session(net) as session:
        kept = session.capture(_target("second", range(8)))
        net(x)
    return kept.values[0]


def never_read(scene: Scene) -> Any:
    target = _target("transformer.h.1.attn", [1], 1, output_path=(1,))
    return _replaced(scene.gpt2(), target, 0.0, scene.ids)


def two_wrappers(scene: Scene) -> Any:
    model = scene.llama()
    first, second = _session(model), _session(model)
    with torch.no_grad(), first:
        first.capture(_target(BLOCK))
        with second:
            second.replace(_target(MLP), 0.0)
            model(scene.ids)
        logits: Tensor = model(scene.ids).logits
    return logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _replaced(model, _target("model.layers.2.mlp"), 0.0, scene.ids)
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    model = scene.llama()
    try:
        _replaced(model, _target(BLOCK, [5], 1), scene.vector, scene.ids[:, :4])  # the prompt is too short for it
    except (IndexError, ValueError):
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    model = scene.gpt2().train()
    with torch.no_grad(), _session(model) as session:
        session.capture(_target("transformer.h.1"))
        return model(scene.ids).logits


def frozen_parameters(scene: Scene) -> Any:
    from tdhook.targets import Target

    model = scene.llama().requires_grad_(False)
    with _session(model) as session:
        kept = session.capture(Target(BLOCK, "gradient", -1, tuple(range(D_MODEL))))
        logits = model(scene.ids).logits
        (logits[0, -1, 5] - logits[0, -1, 9]).backward()
    return kept.values[0]
