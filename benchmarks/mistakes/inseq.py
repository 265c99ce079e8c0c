"""Mistakes with inseq: `load_model` on a model in memory and `attribute`, as its documentation teaches.

inseq scores the tokens of a text; what was meant is the same call without the mistake.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import Scene

DISTRIBUTION = "inseq"
IMPORTS = ("inseq",)
ABSENT = {"": "inseq attributes tokens of texts; it neither edits nor captures"}
NOTES = {"left_padding": "two texts of unequal length, continued by the model and attributed in one batch"}
IMPOSSIBLE = {
    "token_outside_vocabulary": "inputs are texts, and the tokenizer is the model's",
    "padded_without_mask": "inputs are texts, and inseq pads them",
}
CULPRITS = {
    "wrong_keyword": r"nsteps",
    "misspelled_site": r"(?<![a-z])mpl(?![a-z])",
    "position_out_of_range": r"\b\d+ > \d+\b",
}
TEXT, LONGER, MORE = "Hello wo", "Hello world", " again"


def _scores(model: Any, tokenizer: Any, method: str, texts: Any = TEXT, load: Any = None, **options: Any) -> Any:
    import inseq

    tokenizer.unk_token = "<pad>"  # what integrated gradients start from
    attributor = inseq.load_model(model, method, tokenizer=tokenizer, device="cpu", **(load or {}))
    whole = [text + MORE for text in texts] if isinstance(texts, list) else texts + MORE
    out = attributor.attribute(texts, whole, attributed_fn="logit", show_progress=False, **options)
    return [torch.nan_to_num(each.target_attributions) for each in out.sequence_attributions]


def _keyword(scene: Scene, **options: Any) -> Any:
    return _scores(scene.llama(), scene.tokenizer, "integrated_gradients", **options)[0]


def wrong_keyword(scene: Scene) -> Any:
    return _keyword(scene, nsteps=3)


def _at_layer(scene: Scene, layer: str) -> Any:
    load = {"target_layer": layer}
    return _scores(scene.llama(), scene.tokenizer, "layer_gradient_x_activation", load=load)[0]


def misspelled_site(scene: Scene) -> Any:
    return _at_layer(scene, "model.layers.1.mpl")


def layer_out_of_range(scene: Scene) -> Any:
    return _at_layer(scene, "model.layers.3.mlp")


def negative_layer(scene: Scene) -> Any:
    return _at_layer(scene, "model.layers.-1.mlp")


def _saliency(scene: Scene, model: Any = None, **options: Any) -> Any:
    return _scores(scene.llama() if model is None else model, scene.tokenizer, "saliency", **options)[0]


def _tokens(scene: Scene) -> int:
    return len(scene.tokenizer(TEXT + MORE)["input_ids"])


def position_out_of_range(scene: Scene) -> Any:
    return _saliency(scene, attr_pos_start=_tokens(scene) + 1)


def _generated(scene: Scene, *texts: str) -> list[Tensor]:
    import inseq

    attributor = inseq.load_model(scene.gpt2(), "saliency", tokenizer=scene.tokenizer, device="cpu")
    options = {"generation_args": {"max_new_tokens": 3, "do_sample": False}, "show_progress": False}
    out = attributor.attribute(list(texts), attributed_fn="logit", **options)
    return [torch.nan_to_num(each.target_attributions).flatten() for each in out.sequence_attributions]


def left_padding(scene: Scene) -> Any:
    return torch.cat(_generated(scene, TEXT, LONGER))


def unsupported_module(scene: Scene) -> Any:
    return _saliency(scene, scene.net()[0])


def two_wrappers(scene: Scene) -> Any:
    import inseq

    model, tokenizer = scene.llama(), scene.tokenizer
    first = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    _scores(model, tokenizer, "layer_gradient_x_activation", load={"target_layer": "model.layers.1.mlp"})
    out = first.attribute(TEXT, TEXT + MORE, attributed_fn="logit", show_progress=False)
    return torch.nan_to_num(out.sequence_attributions[0].target_attributions)


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _saliency(scene, model)
    with torch.no_grad():
        model(scene.ids)
    return mine["attention"]


def training_left_on(scene: Scene) -> Any:
    return _saliency(scene, scene.gpt2().train())


def frozen_parameters(scene: Scene) -> Any:
    return _saliency(scene, scene.llama().requires_grad_(False))


MEANT = {
    "wrong_keyword": lambda scene: _keyword(scene, n_steps=3),
    "misspelled_site": lambda scene: _at_layer(scene, "model.layers.1.mlp"),
    "layer_out_of_range": lambda scene: _at_layer(scene, "model.layers.2.mlp"),
    "negative_layer": lambda scene: _at_layer(scene, "model.layers.2.mlp"),
    "position_out_of_range": lambda scene: _saliency(scene, attr_pos_start=_tokens(scene) - 1),
    "left_padding": lambda scene: torch.cat([*_generated(scene, TEXT), *_generated(scene, LONGER)]),
    "two_wrappers": _saliency,
    "training_left_on": lambda scene: _saliency(scene, scene.gpt2()),
    "frozen_parameters": _saliency,
}
