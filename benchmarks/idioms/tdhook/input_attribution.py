"""Embedding times gradient, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/start.html, for methods of attribution;
tdhook.attribution.Saliency
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from tdhook.attribution import Saliency
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    def logits(embeds: Tensor) -> Any:
        return model(inputs_embeds=embeds).logits

    # --- operation
    def target(outputs: Any, inputs: Any) -> Any:
        return TensorDict(score=outputs["logits"][:, -1, token], batch_size=outputs.batch_size)

    embeds = model.get_input_embeddings()(ids).detach()
    method = Saliency(init_attr_targets=target, multiply_by_inputs=True)
    with method.prepare(TensorDictModule(logits, ["embeds"], ["logits"]), ["embeds"], ["logits"]) as hooked:
        found = hooked(TensorDict(embeds=embeds, batch_size=[1]))
    return found["attr", "embeds"].sum(-1)[0]
