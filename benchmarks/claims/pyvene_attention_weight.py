"""pyvene 0.1.8 with transformers 5: attention weights cannot be read, and zeroing them changes nothing.

Claim: the component `attention_weight` stands for a module, GPT-2's attention dropout, that its default attention no
longer calls. Collecting there ends in a KeyError about an internal name; an intervention there is a silent no-op.
Documentation followed: tutorial pyvene_101, "Get Attention Weights", its first example.
Right: what zeroing the attention does, got here by zeroing the values that it is multiplied with.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def gpt2() -> GPT2LMHeadModel:
    """Two random blocks."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def main() -> dict[str, Any]:
    """Collect, and zero, the attention of all heads; `holds` where the zeroed logits are those of the plain model."""
    model, inputs = gpt2(), {"input_ids": torch.arange(1, 9)[None]}
    shape = torch.Size([1, model.config.n_head, 8, 8])  # batch, head, query, key
    heads = {"base": [[list(range(model.config.n_head))]]}
    with torch.no_grad():
        plain = model(**inputs).logits
        try:
            collected = str(_at_attention(pv.CollectIntervention)(base=inputs, unit_locations=heads)[0][-1][0].shape)
        except KeyError as error:
            collected = repr(error)
        zeroed = _at_attention(pv.ZeroIntervention)(base=inputs, unit_locations=heads)[1].logits
        model.transformer.h[1].attn.c_attn.register_forward_hook(_without_values)
        right = model(**inputs).logits
    effect, should = (float((logits - plain).abs().max()) for logits in (zeroed, right))
    return {
        "claim": "zeroing the attention of every head of a block changes nothing, without an error",
        "library": "pyvene",
        "version": f"{version('pyvene')} with transformers {version('transformers')}",
        "upstream": "https://github.com/stanfordnlp/pyvene/issues/200",
        "observed": {"effect on the logits": effect, "collected": collected},
        "expected": {"effect on the logits": should, "collected": str(shape)},
        "holds": effect == 0 and should > 1e-3,
    }


def _without_values(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    query, key, value = output.chunk(3, dim=-1)
    return torch.cat([query, key, 0 * value], dim=-1)


def _at_attention(kind: Any) -> Any:
    return pv.IntervenableModel({"layer": 1, "component": "attention_weight", "intervention_type": kind}, model=gpt2())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
