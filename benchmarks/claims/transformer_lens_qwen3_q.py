"""transformer-lens 4.3.0: in Qwen3, `hook_q` is the query before its norm, not the one that enters the rotation.

Claim: `blocks.L.attn.hook_q` is what the projection puts out; Qwen3 normalises each head of it before the rotary
embedding, so that what is read or edited under the name that elsewhere means "the query before rotation" is another
tensor.
Documentation followed: the README's `TransformerBridge`, hook names of the main demo.
Right: read `blocks.L.attn.q_norm.hook_out`, which has heads before positions. Through crosslens `attn.q` is that.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def main() -> dict[str, Any]:
    """Compare `hook_q` with what Hugging Face's module hands to the rotation; `holds` where they differ."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = Qwen3Config(vocab_size=97, intermediate_size=64, attn_implementation="eager", **sizes)
    model, ids = Qwen3ForCausalLM(config).double().eval(), torch.arange(1, 9)[None]
    with torch.no_grad():
        model.model.layers[0].self_attn.q_norm.weight.copy_(torch.linspace(0.5, 2, 8))
    seen: dict[str, torch.Tensor] = {}
    handle = model.model.layers[0].self_attn.q_norm.register_forward_hook(lambda m, i, out: seen.update(rotated=out))
    with torch.no_grad():
        model(ids)
    handle.remove()
    bridge = build_bridge_from_module(model, "Qwen3ForCausalLM", hf_config=config, dtype=torch.float64)
    with torch.no_grad():
        hooks = [("blocks.0.attn.hook_q", lambda act, hook: seen.update(hook_q=act))]
        bridge.run_with_hooks(ids, fwd_hooks=hooks)
    want = seen["rotated"]
    error = float((seen["hook_q"].reshape(want.shape) - want).abs().max() / want.abs().max())
    return {
        "claim": "hook_q of Qwen3 is not the query that is rotated",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"largest difference, relative": error},
        "expected": {"largest difference, relative": 0.0},
        "holds": error > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
