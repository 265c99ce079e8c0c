"""Mistakes with pyvene: an `IntervenableModel`, as its tutorial pyvene_101 teaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import D_HEAD, NEW, Scene

DISTRIBUTION = "pyvene"
IMPORTS = ("pyvene",)
ABSENT = {
    "read_after_stop": "pyvene has no early stop",
    "layer_slice_out_of_range": "a layer is named by its number",
}
IMPOSSIBLE = {
    "read_too_early": "what was collected exists only in the result of a call",
    "forgotten_save": "what a CollectIntervention reads is in the result",
    "stale_name": "what a CollectIntervention reads is in the result",
    "tuple_idiom": "a function is given the tensor, whatever the module returns",
}
CULPRITS = {"wrong_keyword": r"unit_location\b"}


def _run(model: Any, sites: Any, inputs: Any, **call: Any) -> Any:
    import pyvene

    base = inputs if isinstance(inputs, dict) else {"input_ids": inputs}
    _, output = pyvene.IntervenableModel(sites, model=model)(base=base, **call)
    return output.logits


def _zero(layer: int, component: str = "mlp_output", unit: str = "pos") -> dict[str, Any]:
    import pyvene

    return {"layer": layer, "component": component, "unit": unit, "intervention_type": pyvene.ZeroIntervention}


def _collect(*components: dict[str, Any]) -> list[dict[str, Any]]:
    import pyvene

    return [{**each, "intervention": pyvene.CollectIntervention(keep_last_dim=True)} for each in components]


def misspelled_site(scene: Scene) -> Any:
    site = {"component": "model.layers[1].mpl.output", "intervention": lambda base, source: torch.zeros_like(base)}
    return _run(scene.llama(), site, scene.ids)


def misspelled_capture(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 0, "component": "mlp_output"}, {"layer": 1, "component": "mpl_output"})
    (_, collected), _ = pyvene.IntervenableModel(sites, model=scene.llama())({"input_ids": scene.ids})
    return torch.stack(collected)


def pattern_without_match(scene: Scene) -> Any:
    import pyvene

    model = scene.llama()
    names = [name for name, _ in model.named_modules() if name.endswith(".mpl")]
    sites = _collect(*({"component": f"{name}.output"} for name in names))
    (_, collected), _ = pyvene.IntervenableModel(sites, model=model)({"input_ids": scene.ids})
    return torch.stack(collected)


def layer_out_of_range(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(3), scene.ids)


def negative_layer(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(-1), scene.ids)


def wrong_keyword(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(1), scene.ids, unit_location={"base": list(range(7))})


def wrong_input_keyword(scene: Scene) -> Any:
    site = {"component": "transformer.h[1].output", "intervention": lambda base, source: base}
    return _run(scene.gpt2(), site, {"input_ids": scene.left, "attention_masks": scene.mask})[:, -1]


def head_out_of_range(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(1, "head_attention_value_output", "h"), scene.ids, unit_locations={"base": 4})


def head_slice_out_of_range(scene: Scene) -> Any:
    def edit(base: Tensor, source: Any) -> Tensor:
        base[..., 4 * D_HEAD : 5 * D_HEAD] = 0
        return base

    site = {"component": "model.layers[1].self_attn.o_proj.input", "intervention": edit}
    return _run(scene.llama(), site, scene.ids)


def kv_head_out_of_range(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(1, "head_value_output", "h"), scene.ids, unit_locations={"base": 3})


def negative_head(scene: Scene) -> Any:
    return _run(scene.llama(), _zero(1, "head_attention_value_output", "h"), scene.ids, unit_locations={"base": -1})


def _patch(scene: Scene, position: int, value: Tensor) -> Any:
    site = {"layer": 1, "component": "block_output", "source_representation": value}
    return _run(scene.llama(), site, scene.ids, unit_locations={"base": position})


def position_out_of_range(scene: Scene) -> Any:
    return _patch(scene, 7, scene.vector[0, 0])


def position_slice_out_of_range(scene: Scene) -> Any:
    def edit(base: Tensor, source: Any) -> Tensor:
        base[:, 7:8] = scene.vector
        return base

    return _run(scene.llama(), {"component": "model.layers[1].output", "intervention": edit}, scene.ids)


def negative_position(scene: Scene) -> Any:
    return _patch(scene, -1, scene.vector[0, 0])


def _set_unit(scene: Scene, unit: Any) -> Any:
    def edit(base: Tensor, source: Any) -> Tensor:
        base[..., unit] = 20.0
        return base

    site = {"component": "model.layers[1].mlp.down_proj.input", "intervention": edit}
    return _run(scene.llama(), site, scene.ids)


def unit_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, 80)


def unit_slice_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, slice(80, 81))


def wrong_shape(scene: Scene) -> Any:
    return _patch(scene, 6, scene.vector[0, 0, :31])


def broadcastable(scene: Scene) -> Any:
    site = {"layer": 1, "component": "mlp_output", "source_representation": scene.vector[0, 0]}
    return _run(scene.llama(), site, scene.ids)


def _steered(scene: Scene, edit: Any) -> Any:
    return _run(scene.llama(), {"component": "model.layers[1].output", "intervention": edit}, scene.ids)


def wrong_dtype(scene: Scene) -> Any:
    vector = scene.vector.double()
    return _steered(scene, lambda base, source: base + vector)


def edit_returns_tuple(scene: Scene) -> Any:
    return _steered(scene, lambda base, source: (base + scene.vector,))


def edit_returns_none(scene: Scene) -> Any:
    def edit(base: Tensor, source: Any) -> None:
        base = base + scene.vector

    return _steered(scene, edit)


def read_not_captured(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 1, "component": "block_output"})
    (_, collected), _ = pyvene.IntervenableModel(sites, model=scene.llama())({"input_ids": scene.ids})
    return collected[2]


def out_of_order(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 2, "component": "block_output"}, {"layer": 0, "component": "block_output"})
    (_, collected), _ = pyvene.IntervenableModel(sites, model=scene.llama())({"input_ids": scene.ids})
    return torch.stack(collected)


def in_place(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 0, "component": "block_output"})
    sites.append({"component": "model.layers[1].input", "intervention": lambda base, source: base.mul_(2)})
    (_, collected), _ = pyvene.IntervenableModel(sites, model=scene.llama())({"input_ids": scene.ids})
    return collected[0]


def padded_without_mask(scene: Scene) -> Any:
    site = {"component": "transformer.h[1].output", "intervention": lambda base, source: base}
    return _run(scene.gpt2(), site, scene.left)[:, -1]


def left_padding(scene: Scene) -> Any:
    site = {"component": "transformer.h[1].output", "intervention": lambda base, source: base}
    return _run(scene.gpt2(), site, {"input_ids": scene.left, "attention_mask": scene.mask})[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    site = {"layer": 1, "component": "block_output", "source_representation": scene.vector[0, 0]}
    inputs = {"input_ids": scene.right, "attention_mask": scene.right_mask}
    logits = _run(scene.llama(), site, inputs, unit_locations={"base": -1})
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    import pyvene

    site = {"layer": 1, "component": "block_output", "source_representation": scene.vector[0, 0]}
    _, ids = pyvene.IntervenableModel(site, model=scene.llama()).generate(
        {"input_ids": scene.ids}, unit_locations={"base": position}, intervene_on_prompt=True,
        max_new_tokens=NEW, do_sample=False, eos_token_id=None,
    )  # fmt: skip
    return ids[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 1, "component": "block_output"})
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    (_, collected), _ = pyvene.IntervenableModel(sites, model=scene.llama()).generate(
        {"input_ids": scene.ids}, unit_locations=None, intervene_on_prompt=True, **options
    )
    return collected[0]


def token_outside_vocabulary(scene: Scene) -> Any:
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _run(scene.llama(), _zero(1), ids)


def unsupported_module(scene: Scene) -> Any:
    import pyvene

    net, x = scene.net()
    sites = _collect({"component": "second.output"})
    (_, collected), _ = pyvene.IntervenableModel(sites, model=net)({"x": x})
    return collected[0]


def never_read(scene: Scene) -> Any:
    return _run(scene.gpt2(), _zero(1, "attention_weight", "h"), scene.ids, unit_locations={"base": 1})


def two_wrappers(scene: Scene) -> Any:
    import pyvene

    model = scene.llama()
    first = pyvene.IntervenableModel(_collect({"layer": 1, "component": "block_output"}), model=model)
    second = pyvene.IntervenableModel(_zero(1), model=model)
    second({"input_ids": scene.ids})
    _, output = first({"input_ids": scene.ids})
    return output.logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    _run(model, _zero(2), scene.ids)
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    def edit(base: Tensor, source: Any) -> Tensor:
        base[:, 5] = scene.vector[0, 0]  # the first prompt is too short for it
        return base

    model = scene.llama()
    try:
        _run(model, {"component": "model.layers[1].output", "intervention": edit}, scene.ids[:, :4])
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    site = {"component": "transformer.h[1].output", "intervention": lambda base, source: base}
    return _run(scene.gpt2().train(), site, scene.ids)


def frozen_parameters(scene: Scene) -> Any:
    import pyvene

    sites = _collect({"layer": 1, "component": "block_output"})
    model = scene.llama().requires_grad_(False)
    (_, collected), output = pyvene.IntervenableModel(sites, model=model)({"input_ids": scene.ids})
    wanted = output.logits[0, -1, 5] - output.logits[0, -1, 9]
    return torch.autograd.grad(wanted, collected[0])[0]
