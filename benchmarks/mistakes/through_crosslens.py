"""Mistakes with crosslens, through any of its backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import add, apply, open_inspector, replace, zero
from crosslens.adapters.edits import Edit

from .scene import NEW, Scene

DISTRIBUTION = "crosslens"
OUT, RESID, Z, POST = "blocks.1.mlp.out", "blocks.1.resid_post", "blocks.1.attn.z", "blocks.1.mlp.post"
IMPOSSIBLE = {
    "read_too_early": "captures exist only in the result of a run",
    "forgotten_save": "what is named in capture= is in the result",
    "stale_name": "what is named in capture= is in the result",
    "tuple_idiom": "an edit is given the site's tensor, whatever the module returns",
}
CULPRITS = {"wrong_keyword": r"'edit'"}
DOCUMENTED = {
    "training_left_on": (
        "crosslens.adapters.Inspector.run",
        "in the mode that the model is in: while it trains, dropout acts",
    )
}


def _lens(scene: Scene, model: Any = None) -> Any:
    """An inspector, of no type that mypy would know: it refuses some of these programs by itself."""
    return open_inspector(scene.backend, scene.llama() if model is None else model, scene.tokenizer)


def _edited(scene: Scene, *edits: Edit) -> Any:
    with _lens(scene) as lens:
        return lens.run(scene.ids, edits=edits).logits


def misspelled_site(scene: Scene) -> Any:
    return _edited(scene, zero("blocks.1.mpl.out"))


def misspelled_capture(scene: Scene) -> Any:
    with _lens(scene) as lens:
        run = lens.run(scene.ids, capture=["blocks.0.mlp.out", "blocks.1.mpl.out"])
    return torch.stack(list(run.values()))


def pattern_without_match(scene: Scene) -> Any:
    with _lens(scene) as lens:
        return torch.stack(list(lens.run(scene.ids, capture="blocks.*.mpl.out").values()))


def layer_out_of_range(scene: Scene) -> Any:
    return _edited(scene, zero("blocks.3.mlp.out"))


def layer_slice_out_of_range(scene: Scene) -> Any:
    return _edited(scene, zero("blocks.{3,4}.mlp.out"))


def negative_layer(scene: Scene) -> Any:
    return _edited(scene, zero("blocks.-1.mlp.out"))


def wrong_keyword(scene: Scene) -> Any:
    with _lens(scene) as lens:
        return lens.run(scene.ids, edit=[zero(OUT)]).logits


def wrong_input_keyword(scene: Scene) -> Any:
    with _lens(scene, scene.gpt2()) as lens:
        return lens.run({"input_ids": scene.left, "attention_masks": scene.mask}).logits[:, -1]


def head_out_of_range(scene: Scene) -> Any:
    return _edited(scene, zero(Z, heads=[4]))


def head_slice_out_of_range(scene: Scene) -> Any:
    return _edited(scene, zero(Z, heads=slice(4, 5)))


def kv_head_out_of_range(scene: Scene) -> Any:
    return _edited(scene, zero("blocks.1.attn.v", heads=[3]))


def negative_head(scene: Scene) -> Any:
    return _edited(scene, zero(Z, heads=[-1]))


def position_out_of_range(scene: Scene) -> Any:
    return _edited(scene, replace(RESID, scene.vector, positions=[7]))


def position_slice_out_of_range(scene: Scene) -> Any:
    return _edited(scene, replace(RESID, scene.vector, positions=slice(7, 8)))


def negative_position(scene: Scene) -> Any:
    return _edited(scene, replace(RESID, scene.vector, positions=[-1]))


def unit_out_of_range(scene: Scene) -> Any:
    return _edited(scene, replace(POST, torch.full((1, 7, 1), 20.0), units=[80]))


def unit_slice_out_of_range(scene: Scene) -> Any:
    return _edited(scene, replace(POST, torch.full((1, 7, 1), 20.0), units=slice(80, 81)))


def wrong_shape(scene: Scene) -> Any:
    return _edited(scene, replace(RESID, scene.vector[..., :31], positions=[6]))


def broadcastable(scene: Scene) -> Any:
    return _edited(scene, replace(OUT, scene.vector))


def wrong_dtype(scene: Scene) -> Any:
    return _edited(scene, add(RESID, scene.vector.double().expand(1, 7, -1)))


def edit_returns_tuple(scene: Scene) -> Any:
    def steer(hidden: Tensor) -> Any:
        return (hidden + scene.vector,)

    return _edited(scene, apply(RESID, steer))


def edit_returns_none(scene: Scene) -> Any:
    def steer(hidden: Tensor) -> Any:
        hidden = hidden + scene.vector

    return _edited(scene, apply(RESID, steer))


def read_not_captured(scene: Scene) -> Any:
    with _lens(scene) as lens:
        return lens.run(scene.ids, capture=RESID)["blocks.2.resid_post"]


def read_after_stop(scene: Scene) -> Any:
    with _lens(scene) as lens:
        return lens.run(scene.ids, capture=[RESID, "blocks.2.resid_post"], until=RESID)["blocks.2.resid_post"]


def out_of_order(scene: Scene) -> Any:
    with _lens(scene) as lens:
        run = lens.run(scene.ids, capture=["blocks.2.resid_post", "blocks.0.resid_post"])
    return torch.stack(list(run.values()))


def in_place(scene: Scene) -> Any:
    with _lens(scene) as lens:
        edit = apply("blocks.1.resid_pre", lambda hidden: hidden.mul_(2))
        return lens.run(scene.ids, capture="blocks.0.resid_post", edits=[edit])["blocks.0.resid_post"]


def padded_without_mask(scene: Scene) -> Any:
    with _lens(scene, scene.gpt2()) as lens:
        return lens.run(scene.left).logits[:, -1]


def left_padding(scene: Scene) -> Any:
    with _lens(scene, scene.gpt2()) as lens:
        return lens.run({"input_ids": scene.left, "attention_mask": scene.mask}).logits[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    with _lens(scene) as lens:
        edit = replace(RESID, scene.vector.expand(2, 1, -1), positions=[-1])
        run = lens.run({"input_ids": scene.right, "attention_mask": scene.right_mask}, capture="logits", edits=[edit])
    return run.at("logits", [-1])[:, 0]


def _generate(scene: Scene, position: int) -> Any:
    with _lens(scene) as lens:
        edit = replace(RESID, scene.vector, positions=[position])
        return lens.generate(scene.ids, max_new_tokens=NEW, edits=[edit]).new_tokens


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    with _lens(scene) as lens:
        return lens.generate(scene.ids, max_new_tokens=NEW, capture=RESID)[RESID]


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    with _lens(scene) as lens:
        return lens.run(ids).logits


def unsupported_module(scene: Scene) -> Any:
    net, x = scene.net()
    with open_inspector(scene.backend, net) as lens:
        return lens.run(x, capture="module:second:output")["module:second:output"]


def never_read(scene: Scene) -> Any:
    with _lens(scene, scene.gpt2()) as lens:
        return lens.run(scene.ids, edits=[zero("blocks.1.attn.pattern", heads=[1])]).logits


def two_wrappers(scene: Scene) -> Any:
    model = scene.llama()
    with _lens(scene, model) as first, _lens(scene, model) as second:
        second.run(scene.ids, edits=[zero(OUT)])
        return first.run(scene.ids).logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    with _lens(scene, model) as lens:
        lens.run(scene.ids, edits=[zero("blocks.2.mlp.out")])
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    def patch(hidden: Tensor) -> Tensor:
        hidden[:, 5] = scene.vector[0, 0]  # the first prompt is too short for it
        return hidden

    model = scene.llama()
    lens = _lens(scene, model)
    try:
        lens.run(scene.ids[:, :4], edits=[apply(RESID, patch)])
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    with _lens(scene, scene.gpt2().train()) as lens:
        return lens.run(scene.ids).logits


def frozen_parameters(scene: Scene) -> Any:
    with _lens(scene, scene.llama().requires_grad_(False)) as lens:
        return lens.gradients(scene.ids, RESID, lambda logits: logits[:, -1, 5] - logits[:, -1, 9])[RESID]
