"""From a PyTorch model to penzai layers with a copy of its weights, by penzai's own converters.

penzai 0.2.5 reads configs of transformers 4 and checks little. Here its converters get what they expect, what they
would get wrong without a word is refused, and what they do get wrong is put right: GPT-NeoX's last norm ignores
`layer_norm_eps`, and constants are rounded to float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from penzai import pz
from penzai.models.transformer.variants import gpt_neox, llamalike_common
from torch import Tensor, nn

from .errors import UnsupportedError

CONVERTED = ("llama", "mistral", "gpt_neox")
"""Families that penzai has a converter for, and that were checked against the Hugging Face forward."""
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """JAX computes in float64 inside only for a float64 model; the caller's own setting is as before after it."""
    with jax.enable_x64(dtype == torch.float64):
        yield


def to_jax(tensor: Tensor) -> jax.Array:
    """A JAX array of the same values; it may share the tensor's memory."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return jnp.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return jnp.asarray(tensor.numpy())


def to_torch(array: jax.Array, device: torch.device) -> Tensor:
    """A tensor of the same values, in memory of its own."""
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(np.array(array)).to(device)


def convert(model: Any, family: str) -> Any:
    """A penzai `TransformerLM` that computes what the model computes without dropout, in its dtype.

    Parameters are frozen and all labelled alike, so that equal blocks have equal structures and one compiled function
    serves them all.

    Raises:
        UnsupportedError: penzai's converter would fail, or be wrong without a word; says why.
    """
    refuse(model, family)
    with precision(model.dtype):
        frozen = pz.freeze_params((_gpt_neox if family == "gpt_neox" else _llamalike)(model))
        weights = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))
        taken = sum(
            leaf.size for leaf in jax.tree.leaves(pz.select(frozen).at_instances_of(pz.ParameterValue).get_sequence())
        )
        if taken != weights:  # an adapter that somebody put into the model, say
            raise _refusal(family, f"{weights} weights, of which its converter takes {taken}")
        return _exact(frozen, model.config, model.dtype)


def refuse(model: nn.Module, family: str) -> None:
    """Refuse what penzai's converters would fail on or get wrong.

    Raises:
        UnsupportedError: names the setting.
    """
    for wrong in _wrong(model, family):
        raise _refusal(family, wrong)


def _wrong(model: Any, family: str) -> Iterator[str]:
    import transformers  # imported here: it takes seconds, and a model of a known family has it loaded already

    config, rope = model.config, _rope(model.config)
    if family not in CONVERTED or type(model) is not getattr(transformers, _CLASSES[family]):
        yield f"the class {type(model).__name__}"
    if model.dtype not in _DTYPES or len({p.dtype for p in model.parameters()}) > 1:
        yield f"weights of {', '.join(sorted({str(p.dtype) for p in model.parameters()}))}"
    if any(p.is_inference() for p in model.parameters()):
        yield "weights made under torch.inference_mode, whose changes cannot be noticed"
    if rope.get("rope_type", "default") != "default":
        yield f"rope_type={rope['rope_type']!r}: rotary positions are not scaled"
    heads, hidden = config.num_attention_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or hidden // heads
    if size * heads != hidden:
        yield f"head_dim={size}: with {heads} heads it must be hidden_size / heads, {hidden / heads:g}"
    if family == "gpt_neox":
        if not config.use_parallel_residual:
            yield "use_parallel_residual=False: its blocks run attention and MLP in parallel"
        if not config.attention_bias:
            yield "attention_bias=False: it needs the biases"
        if config.hidden_act not in ("gelu", "gelu_new", "relu", "silu"):
            yield f"hidden_act={config.hidden_act!r}"
        size = int(size * rope.get("partial_rotary_factor", 1.0))
    else:
        for name in ("attention_bias", "mlp_bias"):
            if getattr(config, name, False):
                yield f"{name}=True: the biases would be left out"
        if config.hidden_act != "silu":
            yield f"hidden_act={config.hidden_act!r}: it would be taken as silu"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield "partial_rotary_factor: every dimension of a head would turn"
    if size % 2:
        yield f"rotary positions in {size} dimensions of a head: the number must be even"


def _refusal(family: str, wrong: str) -> UnsupportedError:
    return UnsupportedError(
        f"backend 'penzai' does not convert a {family} model with {wrong} (upstream: penzai 0.2.5); use another backend"
    )


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters; the converters would share the caller's memory for some of them, and copy others."""
    own: dict[int, Tensor] = {}  # tied weights are copied once
    return {
        name: own.setdefault(id(p), p.detach().cpu().clone())
        for name, p in model.named_parameters(remove_duplicate=False)
    }


def _llamalike(model: Any) -> Any:
    config, weights = model.config, _weights(model)
    fields = (
        "num_key_value_heads", "num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers",
        "vocab_size", "rms_norm_eps",
    )  # fmt: skip
    given = SimpleNamespace(
        **{name: getattr(config, name) for name in fields},
        sliding_window=getattr(config, "sliding_window", None),
        rope_theta=_rope(config)["rope_theta"],
    )
    # it knows float32 and bfloat16 only; values keep their own dtype, and _exact mends the constants
    dtype = torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32
    shim = SimpleNamespace(config=given, dtype=dtype, state_dict=lambda: weights)
    return llamalike_common.llamalike_from_huggingface_model(shim)


def _gpt_neox(model: Any) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config, weights = model.config, _weights(model)
    weights["embed_out.weight"] = weights.pop("lm_head.weight")  # its name in transformers 4
    given = GPTNeoXConfig()  # the converter refuses any setting that it does not know and that is not the default
    fields = (
        "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "num_attention_heads",
        "num_hidden_layers", "vocab_size",
    )  # fmt: skip
    for name in fields:
        setattr(given, name, getattr(config, name))
    given.rotary_emb_base = _rope(config)["rope_theta"]
    given.rotary_pct = _rope(config).get("partial_rotary_factor", 1.0)
    # the converter asks for exactly this class: an empty one, with a parameter only to have a dtype
    shell: Any = object.__new__(GPTNeoXForCausalLM)
    nn.Module.__init__(shell)
    shell.dtype_of = nn.Parameter(
        torch.empty(0, dtype=torch.bfloat16 if model.dtype == torch.bfloat16 else torch.float32)
    )
    shell.config, shell.state_dict = given, lambda: weights
    return gpt_neox.gpt_neox_from_huggingface_model(shell)


def _exact(frozen: Any, config: Any, dtype: torch.dtype) -> Any:
    """Constants in the model's dtype, the right epsilon in every norm, and equal structures for equal blocks."""
    kind = to_jax(torch.zeros((), dtype=dtype)).dtype
    epsilon = getattr(config, "rms_norm_eps", None) or config.layer_norm_eps
    head = config.hidden_size // config.num_attention_heads

    def change(tree: Any, cls: Any, **fields: Callable[[Any], Any]) -> Any:
        return pz.select(tree).at_instances_of(cls).apply(
            lambda layer: dataclasses.replace(layer, **{name: new(layer) for name, new in fields.items()})
        )  # fmt: skip

    norms = pz.nn.Standardize | pz.nn.RMSStandardize
    masks = pz.nn.ApplyCausalAttentionMask | pz.nn.ApplyCausalSlidingWindowAttentionMask
    out = change(frozen, norms, epsilon=lambda _: jnp.asarray(epsilon, kind))
    out = change(out, pz.nn.ConstantRescale, by=lambda _: jnp.asarray(head**-0.5, kind))
    out = change(out, masks, masked_out_value=lambda mask: jnp.asarray(mask.masked_out_value, kind))
    out = change(out, pz.nn.Elementwise, fn=lambda layer: _comparable(layer.fn))
    out = change(out, pz.nn.ApplyRoPE | pz.nn.ApplyRoPEToSubset, positions_input_name=lambda _: "rotary_positions")
    return change(out, pz.ParameterValue, label=lambda _: "weight")


def _comparable(fn: Any) -> Any:
    """The function, the same object each time: structures that hold it must be equal to be compiled once."""
    return _partial(fn.func, tuple(fn.keywords.items())) if isinstance(fn, functools.partial) else fn


@functools.cache
def _partial(fn: Any, keywords: tuple[tuple[str, Any], ...]) -> Any:
    return functools.partial(fn, **dict(keywords))
