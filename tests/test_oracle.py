"""The oracle against plain Hugging Face forwards, plain PyTorch hooks, arithmetic, and its own definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from crosslens.adapters.conformance.oracle import Oracle, OracleRun
from crosslens.adapters.errors import EditError, InputError, ModelError, SiteError

COMMON = {"vocab_size": 37, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {**COMMON, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}
LLAMA |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
GPT2 = {**COMMON, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 40, "layer_norm_epsilon": 1e-3}
NEOX = {**COMMON, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
NEOX |= {"num_attention_heads": 2, "layer_norm_eps": 1e-3}

VARIANTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**LLAMA, head_dim=8, tie_word_embeddings=True),
    "llama-biased": lambda: LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "gpt2": lambda: GPT2Config(**GPT2),
    "gpt2-scaled": lambda: GPT2Config(
        **GPT2, n_inner=20, scale_attn_by_inverse_layer_idx=True, activation_function="relu"
    ),
    "gpt2-unscaled": lambda: GPT2Config(
        **GPT2, scale_attn_weights=False, tie_word_embeddings=False, activation_function="gelu_pytorch_tanh"
    ),
    "neox": lambda: GPTNeoXConfig(**NEOX, rotary_pct=0.25),
    "neox-serial": lambda: GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, rotary_pct=1.0, hidden_act="gelu_fast"
    ),
    "neox-unbiased": lambda: GPTNeoXConfig(
        **NEOX, rotary_pct=0.5, attention_bias=False, tie_word_embeddings=True
    ),
}
FAMILIES = ["llama", "gpt2", "neox", "neox-serial"]
CLASSES = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel, "gpt_neox": GPTNeoXForCausalLM}


def build(variant: str, attention: str = "sdpa") -> nn.Module:
    """A float64 model whose every parameter is random: biases are not 0 and norm gains are not 1."""
    config = VARIANTS[variant]()
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = CLASSES[config.model_type](config).double().eval()
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.data = 1 + 0.3 * noise if gain else 0.3 * noise
    model.tie_weights()
    return model


LENGTHS = (9, 5, 7)
TOKENS = torch.randint(0, 37, (3, 9), generator=torch.Generator().manual_seed(3))


def padded(side: str) -> tuple[Tensor, Tensor | None]:
    """The first `LENGTHS` tokens of each row of TOKENS as a batch; padding holds a token that means something."""
    if side == "none":
        return TOKENS, None
    ids, mask = torch.full_like(TOKENS, 11), torch.zeros_like(TOKENS)
    for row, length in enumerate(LENGTHS):
        here = slice(0, length) if side == "right" else slice(9 - length, 9)
        ids[row, here], mask[row, here] = TOKENS[row, :length], 1
    return ids, mask


def hf_forward(model: nn.Module, ids: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    real = torch.ones_like(ids) if mask is None else mask
    positions = (real.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=real, position_ids=positions, use_cache=False, **kwargs)


@dataclass
class Edit:
    """An edit as the oracle sees it."""

    kind: str
    site: str
    value: Any = None
    rows: list[int] | None = None
    positions: list[int] | None = None
    heads: list[int] | None = None
    units: list[int] | None = None
    steps: list[int] | None = None


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(scope="module")
def oracle(model: nn.Module) -> Oracle:
    return Oracle(model)


def serial(oracle: Oracle) -> bool:
    return "blocks.0.resid_mid" in oracle.sites


# --- the plain forward: every site against a hook on the module that makes it ---------------------------


def hf_sites(model: Any, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Every site but `pattern`, read by hooks from one plain forward; shapes as in the oracle."""
    seen: dict[str, Tensor] = {}

    def first(value: Any) -> Tensor:
        return (value[0] if isinstance(value, tuple) else value).detach().clone()

    c, family = model.config, model.config.model_type
    heads = c.num_attention_heads
    base = {"llama": "model", "gpt2": "transformer", "gpt_neox": "gpt_neox"}[family]
    names = {
        "llama": ("layers", "self_attn", "o_proj", "down_proj", "post_attention_layernorm"),
        "gpt2": ("h", "attn", "c_proj", "c_proj", "ln_2"),
        "gpt_neox": ("layers", "attention", "dense", "dense_4h_to_h", "post_attention_layernorm"),
    }
    blocks, attention, projection, down, second_norm = names[family]
    with ExitStack() as stack:

        def read(at: nn.Module, site: str, side: str, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
                value = out if side == "out" else (args[0] if args else kwargs["hidden_states"])
                seen[site] = change(first(value))

            handle = at.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)

        body = model.get_submodule(base)
        read(model.get_input_embeddings(), "embed", "out")
        for layer, block in enumerate(body.get_submodule(blocks)):
            name, attn, mlp = f"blocks.{layer}", block.get_submodule(attention), block.mlp
            read(block, f"{name}.resid_pre", "in")
            read(block, f"{name}.resid_post", "out")
            read(attn, f"{name}.attn.out", "out")
            read(mlp, f"{name}.mlp.out", "out")
            read(mlp.get_submodule(down), f"{name}.mlp.post", "in")
            read(
                attn.get_submodule(projection), f"{name}.attn.z", "in", lambda x: x.unflatten(-1, (heads, -1))
            )
            if not getattr(c, "use_parallel_residual", False):
                read(block.get_submodule(second_norm), f"{name}.resid_mid", "in")
            if family == "llama":
                for part, n in (("q", heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)):
                    at = attn.get_submodule(f"{part}_proj")
                    read(at, f"{name}.attn.{part}", "out", lambda x, n=n: x.unflatten(-1, (n, -1)))
            else:
                at = attn.c_attn if family == "gpt2" else attn.query_key_value
                order = (3, heads, -1) if family == "gpt2" else (heads, 3, -1)
                axis = -3 if family == "gpt2" else -2
                for i, part in enumerate("qkv"):

                    def cut(x: Tensor, i: int = i) -> Tensor:
                        return x.unflatten(-1, order).select(axis, i)

                    read(at, f"{name}.attn.{part}", "out", cut)
        seen_norm = {"llama": "norm", "gpt2": "ln_f", "gpt_neox": "final_layer_norm"}[family]
        read(body.get_submodule(seen_norm), "final_norm", "out")
        read(model, "logits", "out", lambda x: x)
        model.register_forward_hook  # noqa: B018
        with torch.no_grad():
            return {**seen, "logits": hf_forward(model, ids, mask, return_dict=True).logits, **seen}
