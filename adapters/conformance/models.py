"""Tiny seeded models that the conformance kit runs on, one entry of `TINY_FAMILIES` for each model family.

They are real Hugging Face models with random weights, small enough for a forward pass in milliseconds. No two
axes that a library could confuse have the same length, no bias is zero and no norm weight is one, and the
weights are large enough that attention is far from uniform: a transposed tensor, a forgotten bias or an edit
without effect shows in the logits.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from crosslens.adapters.errors import InputError, ModelError

_SPACE = "\u0120"  # how byte-level tokenizers write a space
_SPECIAL = ("<pad>", "<bos>", "<eos>")  # ids 0, 1, 2
_LETTERS = string.ascii_letters
_ENCODERS = ("bert",)
_VOCABULARY = len(_SPECIAL) + 256 + len(_LETTERS)  # special tokens, bytes, " a" ... " Z"

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped: two query heads read each key and value head
    "intermediate_size": 80,
    "max_position_embeddings": 1024,
}
# By the names of `transformers` config fields: 3 layers, d_model 32 = 4 heads of 8, d_mlp 80, 1024 positions.
TINY_FAMILIES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "llama": _LLAMA_LIKE,
        "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 80, "n_positions": 1024},
        "gpt_neox": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "max_position_embeddings": 1024,
            "use_parallel_residual": True,
            # partial_rotary_factor: half of each head turns with the position, half does not
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
        "qwen2": _LLAMA_LIKE,
        "qwen3": _LLAMA_LIKE | {"head_dim": 10},  # whose heads need not fill the residual stream
        "mistral": _LLAMA_LIKE | {"head_dim": 8, "sliding_window": 3},  # shorter than what the checks run on
        "gemma2": _LLAMA_LIKE
        | {"head_dim": 10, "sliding_window": 3, "query_pre_attn_scalar": 12}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0},  # low enough to show
        "phi3": _LLAMA_LIKE | {"sliding_window": 3},
        "opt": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 80,
            "max_position_embeddings": 1024,
            "word_embed_proj_dim": 32,
        },
        "bert": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "max_position_embeddings": 1024,
        },
    }
)


def tiny_model(
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A seeded random causal language model of `family`, in eval mode, and its tokenizer.

    The weights depend on `family` and `seed` alone: they are drawn in float64 and rounded to `dtype`, and the
    global random state of the caller is neither read nor changed.

    Args:
        family: a key of `TINY_FAMILIES`, as `transformers` names it ("llama", "gpt2", "gpt_neox").
        dtype: float32, float64, bfloat16 or float16.
        seed: any integer.
        attn_implementation: as in `transformers` ("eager", "sdpa"); None for what it takes itself, "sdpa" where it can.

    Raises:
        ModelError: an unknown family.
        InputError: a dtype or an attention implementation that these models cannot have.
    """
    if family not in TINY_FAMILIES:
        raise ModelError(f"no tiny model of family {family!r}: there are {', '.join(TINY_FAMILIES)}")
    if not dtype.is_floating_point:
        raise InputError(f"a model cannot have weights of {dtype}: use torch.float32, float64 or bfloat16")
    sizes = copy.deepcopy(TINY_FAMILIES[family]) | {"vocab_size": _VOCABULARY}  # a config keeps what it is given
    config = AutoConfig.for_model(family, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            kind = AutoModelForMaskedLM if family in _ENCODERS else AutoModelForCausalLM
            model = kind.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"attention implementation {attn_implementation!r} cannot be used with {family}: {error}"
            ) from error
    _draw_weights(model, seed)
    return model.eval(), tiny_tokenizer()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer made in memory: every text encodes, and decodes to itself.

    One token is one byte of UTF-8, or a space with the ASCII letter after it, so that " Mary" and " John"
    differ in their first token. `<pad>` is 0, `<bos>` 1, `<eos>` 2; none is added by itself.
    """
    letters = [_SPACE + letter for letter in _LETTERS]
    pieces = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *letters]
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[(_SPACE, letter) for letter in _LETTERS],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def _draw_weights(model: nn.Module, seed: int) -> None:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
        if parameter.dim() == 1:
            # In a fresh model norm weights are 1 and biases 0: who forgets to apply them gets away with it.
            value = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif id(parameter) in embeddings:
            value = 0.3 * noise
        else:
            value = 0.25 * noise
        parameter.copy_(value)
