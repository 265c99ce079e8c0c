"""Mistakes with nnsight: a `TransformersModel` and `trace`, as its documentation teaches."""

from __future__ import annotations

from typing import Any

import torch

from .scene import D_HEAD, NEW, Scene

DISTRIBUTION = "nnsight"
IMPORTS = ("nnsight",)
IMPOSSIBLE = {"edit_returns_none": "an edit is an assignment in the block, not a function"}
CULPRITS = {"wrong_keyword": r"\boutputs\b"}
DOCUMENTED = {"training_left_on": ("torch.nn.Module.train", "This has an effect only on certain modules")}


def _wrapped(scene: Scene, model: Any = None) -> Any:
    from nnsight import TransformersModel

    model = scene.llama() if model is None else model
    return TransformersModel(model, tokenizer=scene.tokenizer, task="text-generation")


def misspelled_site(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].mpl.output[:] = 0
        logits = lm.output.logits.save()
    return logits


def misspelled_capture(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids) as tracer:
        cache = tracer.cache(modules=["model.model.layers.0.mlp", "model.model.layers.1.mpl"])
        lm.output.logits.save()
    return torch.stack([cache[path].output for path in cache.keys()])  # noqa: SIM118  a view, not a dict


def pattern_without_match(scene: Scene) -> Any:
    lm = _wrapped(scene)
    wanted = [envoy for envoy in lm.modules() if envoy.path.endswith(".mpl")]
    with torch.no_grad(), lm.trace(scene.ids) as tracer:
        cache = tracer.cache(modules=wanted)
        lm.output.logits.save()
    return torch.stack([cache[path].output for path in cache.keys()])  # noqa: SIM118  a view, not a dict


def layer_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[3].mlp.output[:] = 0
        logits = lm.output.logits.save()
    return logits


def layer_slice_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        for block in lm.model.layers[3:4]:
            block.mlp.output[:] = 0
        logits = lm.output.logits.save()
    return logits


def negative_layer(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[-1].mlp.output[:] = 0
        logits = lm.output.logits.save()
    return logits


def wrong_keyword(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].mlp.outputs = torch.zeros(1, 7, 32)
        logits = lm.output.logits.save()
    return logits


def wrong_input_keyword(scene: Scene) -> Any:
    lm = _wrapped(scene, scene.gpt2())
    with torch.no_grad(), lm.trace(scene.left, attention_masks=scene.mask):
        logits = lm.output.logits.save()
    return logits[:, -1]


def head_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].self_attn.o_proj.input.view(1, 7, 4, D_HEAD)[:, :, 4] = 0
        logits = lm.output.logits.save()
    return logits


def head_slice_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].self_attn.o_proj.input[..., 4 * D_HEAD : 5 * D_HEAD] = 0
        logits = lm.output.logits.save()
    return logits


def kv_head_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].self_attn.v_proj.output[..., 3 * D_HEAD : 4 * D_HEAD] = 0
        logits = lm.output.logits.save()
    return logits


def negative_head(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].self_attn.o_proj.input.view(1, 7, 4, D_HEAD)[:, :, -1] = 0
        logits = lm.output.logits.save()
    return logits


def position_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output[:, 7] = scene.vector[0, 0]
        logits = lm.output.logits.save()
    return logits


def position_slice_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output[:, 7:8] = scene.vector
        logits = lm.output.logits.save()
    return logits


def negative_position(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output[:, -1] = scene.vector[0, 0]
        logits = lm.output.logits.save()
    return logits


def unit_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].mlp.down_proj.input[..., 80] = 20.0
        logits = lm.output.logits.save()
    return logits


def unit_slice_out_of_range(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].mlp.down_proj.input[..., 80:81] = 20.0
        logits = lm.output.logits.save()
    return logits


def wrong_shape(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output[:, 6] = scene.vector[0, 0, :31]
        logits = lm.output.logits.save()
    return logits


def broadcastable(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].mlp.output = scene.vector
        logits = lm.output.logits.save()
    return logits


def wrong_dtype(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output = lm.model.layers[1].output + scene.vector.double()
        logits = lm.output.logits.save()
    return logits


def edit_returns_tuple(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[1].output = (lm.model.layers[1].output + scene.vector,)
        logits = lm.output.logits.save()
    return logits


def tuple_idiom(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(torch.cat([scene.ids, scene.other])):
        lm.model.layers[1].output[0][:] += scene.vector[0, 0]
        logits = lm.output.logits.save()
    return logits


def read_too_early(scene: Scene) -> Any:
    return _wrapped(scene).model.layers[1].mlp.output


def read_not_captured(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids) as tracer:
        cache = tracer.cache(modules=[lm.model.layers[1]])
        lm.output.logits.save()
    return cache["model.model.layers.2"].output


def read_after_stop(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids) as tracer:
        lm.model.layers[1].output.save()
        tracer.stop()
        hidden = lm.model.layers[2].output.save()
    return hidden


def out_of_order(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        late = lm.model.layers[2].output.save()
        early = lm.model.layers[0].output.save()
    return torch.stack([late, early])


def forgotten_save(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        hidden = lm.model.layers[1].output
    return hidden


def stale_name(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.other):
        hidden = lm.model.layers[1].output.save()
    with torch.no_grad(), lm.trace(scene.ids):
        hidden = lm.model.layers[1].output
    return hidden


def in_place(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(scene.ids):
        hidden = lm.model.layers[0].output.save()
        lm.model.layers[1].input[:] *= 2
    return hidden


def padded_without_mask(scene: Scene) -> Any:
    lm = _wrapped(scene, scene.gpt2())
    with torch.no_grad(), lm.trace(scene.left):
        logits = lm.output.logits.save()
    return logits[:, -1]


def left_padding(scene: Scene) -> Any:
    lm = _wrapped(scene, scene.gpt2())
    with torch.no_grad(), lm.trace(input_ids=scene.left, attention_mask=scene.mask):
        logits = lm.output.logits.save()
    return logits[:, -1]


def last_position_right_padded(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with torch.no_grad(), lm.trace(input_ids=scene.right, attention_mask=scene.right_mask):
        lm.model.layers[1].output[:, -1] = scene.vector[0, 0]
        logits = lm.output.logits.save()
    return logits[torch.arange(2), scene.right_mask.sum(1) - 1]


def _generate(scene: Scene, position: int) -> Any:
    lm = _wrapped(scene)
    with lm.generate(max_new_tokens=NEW, do_sample=False, eos_token_id=None) as tracer:
        with tracer.invoke(scene.ids):
            for _ in tracer.iter[:]:
                lm.model.layers[1].output[:, position] = scene.vector[0, 0]
        with tracer.invoke():
            ids = tracer.result.save()
    return ids[:, -NEW:]


def position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 4)


def first_position_while_generating(scene: Scene) -> Any:
    return _generate(scene, 0)


def cache_on(scene: Scene) -> Any:
    lm = _wrapped(scene)
    with lm.generate(scene.ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None):
        hidden = lm.model.layers[1].output.save()
    return hidden


def token_outside_vocabulary(scene: Scene) -> Any:
    lm, ids = _wrapped(scene), scene.ids.clone()
    ids[0, 3] = 400
    with torch.no_grad(), lm.trace(ids):
        logits = lm.output.logits.save()
    return logits


def unsupported_module(scene: Scene) -> Any:
    from nnsight import NNsight

    net, x = scene.net()
    wrapped = NNsight(net)
    with torch.no_grad(), wrapped.trace(x):
        hidden = wrapped.second.output.save()
    return hidden


def never_read(scene: Scene) -> Any:
    lm = _wrapped(scene, scene.gpt2())
    with torch.no_grad(), lm.trace(scene.ids):
        lm.transformer.h[1].attn.output[1][:, 1] = 0
        logits = lm.output.logits.save()
    return logits


def two_wrappers(scene: Scene) -> Any:
    model = scene.llama()
    first, second = _wrapped(scene, model), _wrapped(scene, model)
    with torch.no_grad(), second.trace(scene.ids):
        second.model.layers[1].mlp.output[:] = 0
    with torch.no_grad(), first.trace(scene.ids):
        logits = first.output.logits.save()
    return logits


def own_hook(scene: Scene) -> Any:
    mine: dict[Any, Any] = {}
    model = scene.llama()
    model.model.layers[1].self_attn.register_forward_hook(lambda m, args, output: mine.update(attention=output[0]))
    lm = _wrapped(scene, model)
    with torch.no_grad(), lm.trace(scene.ids):
        lm.model.layers[2].mlp.output[:] = 0
    return mine["attention"]


def exception_inside_edit(scene: Scene) -> Any:
    model = scene.llama()
    lm = _wrapped(scene, model)
    try:
        with torch.no_grad(), lm.trace(scene.ids[:, :4]):
            lm.model.layers[1].output[:, 5] = scene.vector[0, 0]
    except IndexError:
        pass
    with torch.no_grad():
        return model(scene.other).logits


def training_left_on(scene: Scene) -> Any:
    torch.manual_seed(0)
    lm = _wrapped(scene, scene.gpt2().train())
    with torch.no_grad(), lm.trace(scene.ids):
        logits = lm.output.logits.save()
    return logits


def frozen_parameters(scene: Scene) -> Any:
    lm = _wrapped(scene, scene.llama().requires_grad_(False))
    with lm.trace(scene.ids):
        hidden = lm.model.layers[1].output
        logits = lm.output.logits
        with (logits[0, -1, 5] - logits[0, -1, 9]).backward():
            gradient = hidden.grad.save()
    return gradient
