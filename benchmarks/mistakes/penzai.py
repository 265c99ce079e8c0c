"""Mistakes with penzai: layers put in by `pz.select`, as its tutorials on model surgery teach.

The model is crosslens' conversion of the llama: penzai's own, `llama_from_huggingface_model`, refuses configs of
transformers 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .scene import Scene

DISTRIBUTION = "penzai"
IMPORTS = ()  # JAX has threads of its own: each program imports it in its own process
_NO_TORCH = "the PyTorch modules do not run, a converted copy does"
ABSENT = {
    "layer_slice_out_of_range": "a layer is named by its number",
    "wrong_input_keyword": "it converts no model with learned positions",
    "padded_without_mask": "it converts no model with learned positions",
    "left_padding": "it converts no model with learned positions",
    "last_position_right_padded": "its transformers take no mask; padding is excluded by positions",
    "position_while_generating": "generation is a sampler of its own, without layers put in",
    "first_position_while_generating": "generation is a sampler of its own, without layers put in",
    "cache_on": "generation is a sampler of its own, without layers put in",
    "read_after_stop": "a model is a function, with no early stop",
    "stale_name": "a new variable is made for each model that is put together",
    "own_hook": _NO_TORCH,
    "never_read": "its attention returns no weights",
}
IMPOSSIBLE = {
    "negative_head": "heads are two named axes, and -1 on both is the last",
    "in_place": "arrays are immutable",
    "tuple_idiom": "blocks are given and give one array",
    "training_left_on": "its transformers have no dropout",
    "frozen_parameters": "jax.grad differentiates by what it is told to",
    "exception_inside_edit": "a layer is put into a copy; the model itself does not change",
}
CULPRITS = {"wrong_keyword": r"\bembed\b", "misspelled_capture": r"FeedForwardMpl"}
STREAM = ("batch", "seq", "embedding")


def _setup(scene: Scene) -> tuple[Any, Any]:
    """The converted model, and pz for short."""
    from penzai import pz

    from crosslens.adapters.penzai_convert import convert

    return convert(scene.llama(), "llama"), pz


def _logits(network: Any, ids: Tensor) -> Any:
    from penzai import pz

    tokens = pz.nx.wrap(_array(ids.int())).tag("batch", "seq")
    return _torch(network(tokens, rotary_positions=pz.nx.arange("seq", ids.shape[1])), "batch", "seq", "vocabulary")


def _array(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(tensor.numpy())


def _torch(named: Any, *axes: str) -> Any:
    import numpy as np

    whole = set(axes) == set(named.named_shape)  # else there are more axes than the user knows of
    return torch.from_numpy(np.array(named.unwrap(*axes) if whole else named.untag(*axes).data_array))


def _layer(function: Any) -> Any:
    """A penzai layer that does what the function does to its input."""
    from penzai import pz

    @pz.pytree_dataclass
    class Edit(pz.nn.Layer):  # type: ignore[misc]
        def __call__(self, value: Any, **_: Any) -> Any:
            return function(value)

    return Edit()


def _mlps(network: Any, pz: Any) -> Any:
    from penzai.models.transformer.model_parts import TransformerFeedForward

    return pz.select(network).at_instances_of(TransformerFeedForward)


def _blocks(network: Any, pz: Any) -> Any:
    from penzai.models.transformer.model_parts import TransformerBlock

    return pz.select(network).at_instances_of(TransformerBlock)


def _zeroed(scene: Scene, layer: int) -> Any:
    network, pz = _setup(scene)
    return _logits(_mlps(network, pz).pick_nth_selected(layer).insert_after(_layer(lambda x: x * 0)), scene.ids)


def misspelled_site(scene: Scene) -> Any:
    network, pz = _setup(scene)
    edited = _blocks(network, pz).pick_nth_selected(1).at(lambda block: block.mpl).insert_after(_layer(lambda x: x * 0))
    return _logits(edited, scene.ids)


def _saved(scene: Scene, selected: Any, pz: Any) -> dict[Any, Tensor]:
    from penzai.toolshed.save_intermediates import SaveIntermediate

    def saving(index: int, part: Any) -> Any:
        return pz.nn.Sequential([part, SaveIntermediate(pz.StateVariable(None, label=index))])

    network = selected.apply_with_selected_index(saving)
    _logits(network, scene.ids)
    return {state.label: _torch(state.value, *STREAM) for state in pz.unbind_state_vars(network)[1]}


def pattern_without_match(scene: Scene) -> Any:
    network, pz = _setup(scene)
    selected = pz.select(network).at_instances_of(pz.nn.Layer).where(lambda part: "mpl" in type(part).__name__)
    return torch.stack(list(_saved(scene, selected, pz).values()))


def misspelled_capture(scene: Scene) -> Any:
    from penzai.models.transformer import model_parts

    network, pz = _setup(scene)
    selected = pz.select(network).at_instances_of(model_parts.TransformerFeedForwardMpl)
    found = _saved(scene, selected, pz)
    return torch.stack([found[layer] for layer in (0, 1)])


def layer_out_of_range(scene: Scene) -> Any:
    return _zeroed(scene, 3)


def negative_layer(scene: Scene) -> Any:
    return _zeroed(scene, -1)


def wrong_keyword(scene: Scene) -> Any:
    network, pz = _setup(scene)
    zeros = pz.nx.wrap(_array(torch.zeros(1, 7, 32))).tag("batch", "seq", "embed")  # the axis is "embedding"
    edited = _mlps(network, pz).pick_nth_selected(1).insert_after(_layer(lambda x: zeros))
    return _logits(edited, scene.ids)


def _before_linear(scene: Scene, where: Any, function: Any) -> Any:
    network, pz = _setup(scene)
    part = pz.select(network).at_instances_of(pz.nn.Attention).pick_nth_selected(1)
    edited = part.at(where).at_instances_of(pz.nn.Linear).insert_before(_layer(function))
    return _logits(edited, scene.ids)


def _zero_head(scene: Scene, index: Any) -> Any:
    return _before_linear(scene, lambda a: a.attn_value_to_output, lambda z: z.at[index].set(0.0))


def head_out_of_range(scene: Scene) -> Any:
    return _zero_head(scene, {"head_groups": 2, "query_heads": 0})  # head 4, of 2 groups of 2


def head_slice_out_of_range(scene: Scene) -> Any:
    import penzai.pz as pz

    return _zero_head(scene, {"head_groups": pz.slice[2:3], "query_heads": pz.slice[0:1]})


def kv_head_out_of_range(scene: Scene) -> Any:
    network, pz = _setup(scene)
    part = pz.select(network).at_instances_of(pz.nn.Attention).pick_nth_selected(1)
    edit = _layer(lambda v: v.at[{"head_groups": 3}].set(0.0))
    edited = part.at(lambda attention: attention.input_to_value).apply(lambda value: pz.nn.Sequential([value, edit]))
    return _logits(edited, scene.ids)


def _patched(scene: Scene, index: Any, value: Tensor | None = None) -> Any:
    network, pz = _setup(scene)
    vector = pz.nx.wrap(_array(scene.vector[0, 0] if value is None else value)).tag("embedding")
    edit = _layer(lambda x: x.at[{"seq": index}].set(vector))
    return _logits(_blocks(network, pz).pick_nth_selected(1).insert_after(edit), scene.ids)


def position_out_of_range(scene: Scene) -> Any:
    return _patched(scene, 7)


def position_slice_out_of_range(scene: Scene) -> Any:
    import penzai.pz as pz

    return _patched(scene, pz.slice[7:8])


def negative_position(scene: Scene) -> Any:
    return _patched(scene, -1)


def _set_unit(scene: Scene, index: Any) -> Any:
    network, pz = _setup(scene)
    part = _mlps(network, pz).pick_nth_selected(1).at(lambda mlp: mlp.sublayers[-1])
    return _logits(part.insert_before(_layer(lambda x: x.at[{"neurons": index}].set(20.0))), scene.ids)


def unit_out_of_range(scene: Scene) -> Any:
    return _set_unit(scene, 80)


def unit_slice_out_of_range(scene: Scene) -> Any:
    import penzai.pz as pz

    return _set_unit(scene, pz.slice[80:81])


def wrong_shape(scene: Scene) -> Any:
    return _patched(scene, 6, scene.vector[0, 0, :31])


def broadcastable(scene: Scene) -> Any:
    network, pz = _setup(scene)
    vector = pz.nx.wrap(_array(scene.vector[0, 0])).tag("embedding")
    return _logits(_mlps(network, pz).pick_nth_selected(1).insert_after(_layer(lambda x: vector)), scene.ids)


def _steered(scene: Scene, function: Any, dtype: torch.dtype = torch.float32) -> Any:
    network, pz = _setup(scene)
    vector = pz.nx.wrap(_array(scene.vector[0, 0].to(dtype))).tag("embedding")
    edit = _layer(lambda x: function(x, vector))
    return _logits(_blocks(network, pz).pick_nth_selected(1).insert_after(edit), scene.ids)


def wrong_dtype(scene: Scene) -> Any:
    return _steered(scene, lambda x, vector: x + vector, torch.float64)


def edit_returns_tuple(scene: Scene) -> Any:
    return _steered(scene, lambda x, vector: (x + vector,))


def edit_returns_none(scene: Scene) -> Any:
    def edit(x: Any, vector: Any) -> None:
        x = x + vector

    return _steered(scene, edit)


def read_too_early(scene: Scene) -> Any:
    from penzai.toolshed.save_intermediates import SaveIntermediate

    network, pz = _setup(scene)
    state = pz.StateVariable(None)
    _mlps(network, pz).pick_nth_selected(1).insert_after(SaveIntermediate(state))
    return _torch(state.value, *STREAM)


def read_not_captured(scene: Scene) -> Any:
    network, pz = _setup(scene)
    return _saved(scene, _blocks(network, pz).pick_nth_selected(1), pz)[2]


def out_of_order(scene: Scene) -> Any:
    network, pz = _setup(scene)
    found = _saved(scene, _blocks(network, pz), pz)
    return torch.stack([found[2], found[0]])


def forgotten_save(scene: Scene) -> Any:
    """A variable that a function compiled by JAX fills, and that is read outside without being returned."""
    import jax
    from penzai.toolshed.save_intermediates import SaveIntermediate

    network, pz = _setup(scene)
    state = pz.StateVariable(None)
    network = _blocks(network, pz).pick_nth_selected(1).insert_after(SaveIntermediate(state))
    tokens = pz.nx.wrap(_array(scene.ids.int())).tag("batch", "seq")
    jax.jit(lambda ids: network(ids, rotary_positions=pz.nx.arange("seq", 7)))(tokens)
    return _torch(state.value, *STREAM)


def token_outside_vocabulary(scene: Scene) -> Any:
    network, _ = _setup(scene)
    ids = scene.ids.clone()
    ids[0, 3] = 400
    return _logits(network, ids)


def unsupported_module(scene: Scene) -> Any:
    from penzai.models.transformer.variants.llama import llama_from_huggingface_model

    return _logits(llama_from_huggingface_model(scene.net()[0]), scene.ids)


def two_wrappers(scene: Scene) -> Any:
    network, pz = _setup(scene)
    second = _mlps(network, pz).pick_nth_selected(1).insert_after(_layer(lambda x: x * 0))
    _logits(second, scene.ids)
    return _logits(network, scene.ids)
