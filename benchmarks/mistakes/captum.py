"""Mistakes with captum: its layer methods, which read inside a model, as its documentation teaches them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import Scene

DISTRIBUTION = "captum"
IMPORTS = ("captum.attr",)
ABSENT = {"": "captum attributes an output to inputs and layers; it neither edits nor generates"}
IMPOSSIBLE = {
    "read_too_early": "attribute() runs the model",
    "forgotten_save": "attribute() returns what it is for",
    "stale_name": "attribute() returns what it is for",
}
CULPRITS = {"wrong_input_keyword": r"attention_masks"}
DOCUMENTED = {"training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules")}


def _read(model: Any, layers: Any, inputs: Tensor, **options: Any) -> Any:
    from captum.attr import LayerActivation

    return LayerActivation(lambda ids: model(ids, **options).logits, layers).attribute(inputs)


def misspelled_capture(scene: Scene) -> Any:
    model = scene.llama()
    return torch.stack(_read(model, [model.model.layers[0].mlp, model.model.layers[1].mpl], scene.ids))


def pattern_without_match(scene: Scene) -> Any:
    model = scene.llama()
    return torch.stack(_read(model, [m for name, m in model.named_modules() if name.endswith(".mpl")], scene.ids))


def wrong_input_keyword(scene: Scene) -> Any:
    model = scene.gpt2()
    return _read(model, model.lm_head, scene.left, attention_masks=scene.mask)[:, -1]


def out_of_order(scene: Scene) -> Any:
    model = scene.llama()
    return torch.stack(_read(model, [model.model.layers[2], model.model.layers[0]], scene.ids))


def read_not_captured(scene: Scene) -> Any:
    model = scene.llama()
    return _read(model, [model.model.layers[1]], scene.ids)[2]


def in_place(scene: Scene) -> Any:
    model = scene.llama()
    model.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0].mul_(2),))
    with torch.no_grad():
        return _read(model, model.model.layers[0], scene.ids)


def padded_without_mask(scene: Scene) -> Any:
    model = scene.gpt2()
    return _read(model, model.lm_head, scene.left)[:, -1]


def left_padding(scene: Scene) -> Any:
    model = scene.gpt2()
    return _read(model, model.lm_head, scene.left, attention_mask=scene.mask)[:, -1]


def token_outside_vocabulary(scene: Scene) -> Any:
    model, ids = scene.llama(), scene.ids.clone()
    ids[0, 3] = 400
    return _read(model, model.lm_head, ids)


def unsupported_module(scene: Scene) -> Any:
    from captum.attr import LayerActivation

    net, x = scene.net()
    return LayerActivation(net, net.second).attribute(x)


def two_wrappers(scene: Scene) -> Any:
    from captum.attr import LayerActivation

    model = scene.llama()
    first = LayerActivation(lambda ids: model(ids).logits, model.lm_head)
    second = LayerActivation(lambda ids: model(ids).logits, model.model.layers[1])
    second.attribute(scene.ids)
    return first.attribute(scene.ids)


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _read(model, model.model.layers[2], scene.ids)
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    from captum.attr import LayerActivation

    def forward(ids: Tensor) -> Any:
        return model(ids).logits[:, 5]  # the first prompt is too short for it

    model = scene.llama()
    try:
        LayerActivation(forward, model.model.layers[1]).attribute(scene.ids[:, :4])
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    model = scene.gpt2().train()
    return _read(model, model.lm_head, scene.ids)


def frozen_parameters(scene: Scene) -> Any:
    from captum.attr import LayerGradientXActivation

    def wanted(ids: Tensor) -> Any:
        logits = model(ids).logits[:, -1]
        return logits[:, 5] - logits[:, 9]

    model = scene.llama().requires_grad_(False)
    product = LayerGradientXActivation(wanted, model.model.layers[1]).attribute(scene.ids)
    return product / _read(model, model.model.layers[1], scene.ids)
