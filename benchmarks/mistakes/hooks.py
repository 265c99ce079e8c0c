"""Mistakes with PyTorch's own hooks, as its documentation of `register_forward_hook` teaches them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import D_HEAD, NEW, Scene

DISTRIBUTION = "torch"
IMPORTS = ()
ABSENT = {
    "read_after_stop": "hooks have no early stop",
    "stale_name": "no step of the library keeps a value; the hook is the user's own function",
    "forgotten_save": "no step of the library keeps a value; the hook is the user's own function",
}
IMPOSSIBLE = {"out_of_order": "hooks fire as the model runs, in whatever order they were registered"}
CULPRITS = {"wrong_keyword": r"prepends"}
DOCUMENTED = {
    "edit_returns_none": ("torch.nn.Module.register_forward_hook", "-> None or modified output"),
    "training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules"),
}
NOTES = {
    "unsupported_module": "any module is supported",
    "wrong_input_keyword": "transformers' forward takes any keyword",
    "left_padding": "transformers counts columns where it is given no position_ids",
}


def _run(model: Any, path: str, hook: Any, ids: Tensor, *, before: bool = False, **options: Any) -> Any:
    module = model.get_submodule(path)
    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    with torch.no_grad():
        logits: Tensor = model(ids, **options).logits
    handle.remove()
    return logits


def _zeros(module: Any, args: Any, output: Tensor) -> Any:
    return torch.zeros_like(output)


def misspelled_site(scene: Scene) -> Any:
    return _run(scene.llama(), "model.layers.1.mpl", _zeros, scene.ids)


def misspelled_capture(scene: Scene) -> Any:
    kept: list[Tensor] = []
    model = scene.llama()
    for name in ("model.layers.0.mlp", "model.layers.1.mpl"):
        model.get_submodule(name).register_forward_hook(lambda m, args, output: kept.append(output.clone()))
    with torch.no_grad():
        model(scene.ids)
    return torch.stack(kept)


def pattern_without_match(scene: Scene) -> Any:
    kept: list[Tensor] = []
    model = scene.llama()
    for name, module in model.named_modules():
        if name.endswith(".mpl"):
            module.register_forward_hook(lambda m, args, output: kept.append(output.clone()))
    with torch.no_grad():
        model(scene.ids)
    return torch.stack(kept)


def layer_out_of_range(scene: Scene) -> Any:
    model = scene.llama()
    model.model.layers[3].mlp.register_forward_hook(_zeros)
    with torch.no_grad():
        return model(scene.ids).logits


def layer_slice_out_of_range(scene: Scene) -> Any:
    model = scene.llama()
    for block in model.model.layers[3:4]:
        block.mlp.register_forward_hook(_zeros)
    with torch.no_grad():
        return model(scene.ids).logits


def negative_layer(scene: Scene) -> Any:
    model = scene.llama()
    model.model.layers[-1].mlp.register_forward_hook(_zeros)
    with torch.no_grad():
        return model(scene.ids).logits


def wrong_keyword(scene: Scene) -> Any:
    model = scene.llama()
    model.model.layers[1].mlp.register_forward_hook(_zeros, prepends=True)
    with torch.no_grad():
        return model(scene.ids).logits


def wrong_input_keyword(scene: Scene) -> Any:
    positions = (scene.mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return scene.gpt2()(scene.left, attention_masks=scene.mask, position_ids=positions).logits[:, -1]


def _zero_head(scene: Scene, head: Any) -> Any:
    def edit(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone().view(1, 7, -1, D_HEAD)
        z[:, :, head] = 0
        return (z.flatten(2),)

    return _run(scene.llama(), "model.layers.1.self_attn.o_proj", edit, scene.ids, before=True)


def head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, 4)


def head_slice_out_of_range(scene: Scene) -> Any:
    def edit(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., 4 * D_HEAD : 5 * D_HEAD] = 0
        return (z,)

    return _run(scene.llama(), "model.layers.1.self_attn.o_proj", edit, scene.ids, before=True)


def kv_head_out_of_range(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., 3 * D_HEAD : 4 * D_HEAD] = 0
        return output

    return _run(scene.llama(), "model.layers.1.self_attn.v_proj", edit, scene.ids)


def negative_head(scene: Scene) -> Any:
    return _zero_head(scene, -1)


def _patch(scene: Scene, where: Any) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, where] = scene.vector[:, 0] if isinstance(where, int) else scene.vector
        return output

    return _run(scene.llama(), "model.layers.1", edit, scene.ids)


def position_out_of_range(scene: Scene) -> Any:
    return _patch(scene, 7)


def position_slice_out_of_range(scene: Scene) -> Any:
    return _patch(scene, slice(7, 8))


def negative_position(scene: Scene) -> Any:
    return _patch(scene, -1)


def _set_unit(scene: Scene, unit: Any) -> Any:
    def edit(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        neurons = args[0].clone()
        neurons[..., unit] = 20.0
        return (neurons,)

    return _run(scene.llama(), "model.layers.1.mlp.down_proj", edit, scene.ids, before=True)


def unit_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, 80)


def unit_slice_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, slice(80, 81))


def wrong_shape(scene: Scene) -> Any:
    value = scene.vector[0, 0, :31]

    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 6] = value
        return output

    return _run(scene.llama(), "model.layers.1", edit, scene.ids)


def broadcastable(scene: Scene) -> Any:
    return _run(scene.llama(), "model.layers.1.mlp", lambda module, args, output: scene.vector, scene.ids)


def wrong_dtype(scene: Scene) -> Any:
    vector = scene.vector.double()
    return _run(scene.llama(), "model.layers.1", lambda module, args, output: output + vector, scene.ids)


def edit_returns_tuple(scene: Scene) -> Any:
    return _run(scene.llama(), "model.layers.1", lambda module, args, output: (output + scene.vector,), scene.ids)


def edit_returns_none(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> None:
        output = output + scene.vector

    return _run(scene.llama(), "model.layers.1", edit, scene.ids)


def tuple_idiom(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: Any) -> None:
        output[0][:] += scene.vector[0, 0]

    return _run(scene.llama(), "model.layers.1", edit, torch.cat([scene.ids, scene.other]))


def read_too_early(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].mlp.register_forward_hook(lambda m, args, output: kept.update(mlp=output))
    return kept["mlp"]


def read_not_captured(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].register_forward_hook(lambda m, args, output: kept.update({1: output}))
    with torch.no_grad():
        model(scene.ids)
    return kept[2]


def in_place(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[0].register_forward_hook(lambda m, args, output: kept.update(hidden=output))
    model.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0].mul_(2),))
    with torch.no_grad():
        model(scene.ids)
    return kept["hidden"]


def padded_without_mask(scene: Scene) -> Any:
    with torch.no_grad():
        return scene.gpt2()(scene.left).logits[:, -1]


def left_padding(scene: Scene) -> Any:
    with torch.no_grad():
        return scene.gpt2()(scene.left, attention_mask=scene.mask).logits[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -1] = scene.vector[0, 0]
        return output

    logits = _run(scene.llama(), "model.layers.1", edit, scene.right, attention_mask=scene.right_mask)
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, position] = scene.vector[0, 0]
        return output

    model = scene.llama()
    model.model.layers[1].register_forward_hook(edit)
    return model.generate(scene.ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].register_forward_hook(lambda m, args, output: kept.update(hidden=output))
    model.generate(scene.ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return kept["hidden"]


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _run(scene.llama(), "model.layers.1.mlp", _zeros, ids)


def unsupported_module(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    net, x = scene.net()
    net.second.register_forward_hook(lambda m, args, output: kept.update(hidden=output))
    with torch.no_grad():
        net(x)
    return kept["hidden"]


def never_read(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weights = output[1].clone()
        weights[:, 1] = 0
        return output[0], weights

    return _run(scene.gpt2(), "transformer.h.1.attn", edit, scene.ids)


def two_wrappers(scene: Scene) -> Any:
    seen: list[Tensor] = []
    model = scene.llama()
    first = model.model.layers[1].register_forward_hook(lambda m, args, output: seen.append(output))
    _run(model, "model.layers.1.mlp", _zeros, scene.ids)
    with torch.no_grad():
        logits: Tensor = model(scene.ids).logits
    first.remove()
    return logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _run(model, "model.layers.2.mlp", _zeros, scene.ids)
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    def edit(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 5] = scene.vector[0, 0]  # the first prompt is too short for it
        return output

    model = scene.llama()
    try:
        _run(model, "model.layers.1", edit, scene.ids[:, :4])
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    return _run(scene.gpt2().train(), "transformer.h.1", lambda m, args, output: None, scene.ids)


def frozen_parameters(scene: Scene) -> Any:
    kept: dict[Any, Any] = {}
    model = scene.llama().requires_grad_(False)

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        kept["hidden"] = output

    model.model.layers[1].register_forward_hook(keep)
    logits = model(scene.ids).logits
    (logits[0, -1, 5] - logits[0, -1, 9]).backward()
    return kept["hidden"].grad
