"""llama, gpt2 and gpt_neox written out by hand, from the embedding to the logits.

Each of the three family functions is a whole forward pass and reads from top to bottom like its source.
`site(name, tensor)` is the moment when a site comes into being: it returns the tensor as edited, and every
later line reads what it returned, so that an edit reaches exactly what is computed from the site.

Sources: GPT-2 (Radford et al. 2019), GPT-NeoX-20B (Black et al. 2022, arXiv:2204.06745), LLaMA (Touvron et
al. 2023, arXiv:2302.13971), rotary embedding (Su et al. 2021, arXiv:2104.09864), RMSNorm (Zhang and Sennrich
2019, arXiv:1910.07467), grouped heads (Ainslie et al. 2023, arXiv:2305.13245), GELU (Hendrycks and Gimpel
2016, arXiv:1606.08415). Weight names and layouts are those of the Hugging Face checkpoints.

Shapes are written as `batch, pos, d_model`; `query` and `key` are positions as seen by attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crosslens.adapters.errors import ModelError

Site = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Islands:
    """The dtype of three computations that Hugging Face code does in float32 even in a float64 model."""

    rms_norm: torch.dtype = torch.float64
    rotary_table: torch.dtype = torch.float64
    softmax: torch.dtype = torch.float64


@dataclass
class Weights:
    """A model's float64 tensors by their name in its `state_dict`; remembers which ones were read."""

    tensors: Mapping[str, Tensor]
    read: set[str] = field(default_factory=set)

    def get(self, name: str) -> Tensor | None:
        self.read.add(name)
        return self.tensors.get(name)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor is None:
            raise ModelError(f"the model has no weight {name!r}: it is not a plain model of its family")
        return tensor


@dataclass(frozen=True)
class Decoder:
    """What a forward pass reads: the numbers in the config, the weights, and how each island is computed.

    `frequencies` (rotary_dim / 2,) are the rotary frequencies in radians per position; None without rotary.
    """

    config: Any
    weights: Weights
    islands: Islands
    frequencies: Tensor | None


# --- the parts -------------------------------------------------------------------------------------------


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """(..., d_in) -> (..., d_out): `x W^T + b`; the weight is stored as (d_out, d_in)."""
    y = x @ w[f"{name}.weight"].T
    bias = w.get(f"{name}.bias")
    return y if bias is None else y + bias


def conv1d(w: Weights, name: str, x: Tensor) -> Tensor:
    """(..., d_in) -> (..., d_out): `x W + b`; GPT-2 stores the weight as (d_in, d_out)."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """(..., d_model): zero mean and unit variance over the last axis, then gain and bias."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.pow(2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: Weights, name: str, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """(..., d_model): divided by its root mean square over the last axis (in `dtype`), then gain."""
    h = x.to(dtype)
    h = h * torch.rsqrt(h.pow(2).mean(dim=-1, keepdim=True) + eps)
    return w[f"{name}.weight"] * h.to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """batch, pos, head * d_head -> batch, pos, head, d_head."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Tensor) -> Tensor:
    """batch, pos, head, d_head -> batch, pos, head * d_head."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def rotary_frequencies(theta: float, dim: int) -> Tensor:
    """(dim / 2,), float64: frequency i is theta^(-2i / dim)."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotate(x: Tensor, positions: Tensor, model: Decoder) -> Tensor:
    """batch, pos, head, d_head: dimensions i and i + dim/2 turn by the angle position * frequency i.

    Only the first `dim = 2 * len(frequencies)` dimensions of a head turn; the others pass unchanged.
    """
    assert model.frequencies is not None
    dtype = model.islands.rotary_table
    angle = positions[..., None].to(dtype) * model.frequencies.to(dtype)  # batch, pos, dim/2
    cos = angle.cos().to(x.dtype)[:, :, None]  # batch, pos, 1, dim/2
    sin = angle.sin().to(x.dtype)[:, :, None]
    half = model.frequencies.shape[0]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor, model: Decoder, block: str, site: Site
) -> Tensor:
    """Scaled dot-product attention, with the sites `pattern` and `z`.

    Args: q (batch, pos, head, d_head), k and v (batch, pos, kv head, d_head), visible (batch, query, key).
    Returns: z (batch, pos, head, d_head).
    """
    heads, group = q.shape[2], q.shape[2] // k.shape[2]
    k = torch.stack([k[:, :, head // group] for head in range(heads)], dim=2)  # batch, pos, head, d_head
    v = torch.stack([v[:, :, head // group] for head in range(heads)], dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale  # batch, head, query, key
    scores = scores.masked_fill(~visible[:, None], -math.inf)
    pattern = torch.softmax(scores, dim=-1, dtype=model.islands.softmax).to(scores.dtype)
    pattern = site(f"{block}.attn.pattern", pattern)
    return site(f"{block}.attn.z", torch.einsum("bhqk,bkhd->bqhd", pattern, v))


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_fast(x: Tensor) -> Tensor:
    # The same with the constant cut after ten digits, as checkpoints with this name were trained.
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x**2)))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_fast,
    "relu": torch.relu,
    "silu": _silu,
    "swish": _silu,
}


# --- the families ----------------------------------------------------------------------------------------
# tokens, positions: (batch, pos), int64;  visible: (batch, query, key), bool;  result: (batch, pos, d_vocab)


def llama(model: Decoder, tokens: Tensor, positions: Tensor, visible: Tensor, site: Site) -> Tensor:
    """Serial blocks, RMSNorm, rotary q and k, grouped kv heads, gated MLP."""
    w, c = model.weights, model.config
    eps, norm_dtype, act = c.rms_norm_eps, model.islands.rms_norm, ACTIVATIONS[c.hidden_act]

    x = site("embed", w["model.embed_tokens.weight"][tokens])  # batch, pos, d_model
    for layer in range(c.num_hidden_layers):
        block, at = f"blocks.{layer}", f"model.layers.{layer}"
        resid_pre = site(f"{block}.resid_pre", x)  # batch, pos, d_model

        h = rms_norm(w, f"{at}.input_layernorm", resid_pre, eps, norm_dtype)
        q = split_heads(linear(w, f"{at}.self_attn.q_proj", h), c.num_attention_heads)
        k = split_heads(linear(w, f"{at}.self_attn.k_proj", h), c.num_key_value_heads)
        v = split_heads(linear(w, f"{at}.self_attn.v_proj", h), c.num_key_value_heads)
        q = site(f"{block}.attn.q", q)  # batch, pos, head, d_head
        k = site(f"{block}.attn.k", k)  # batch, pos, kv head, d_head
        v = site(f"{block}.attn.v", v)
        q, k = rotate(q, positions, model), rotate(k, positions, model)
        z = attend(q, k, v, 1 / math.sqrt(q.shape[-1]), visible, model, block, site)
        attn_out = site(f"{block}.attn.out", linear(w, f"{at}.self_attn.o_proj", merge_heads(z)))
        resid_mid = site(f"{block}.resid_mid", resid_pre + attn_out)  # batch, pos, d_model

        h = rms_norm(w, f"{at}.post_attention_layernorm", resid_mid, eps, norm_dtype)
        mlp_post = act(linear(w, f"{at}.mlp.gate_proj", h)) * linear(w, f"{at}.mlp.up_proj", h)
        mlp_post = site(f"{block}.mlp.post", mlp_post)  # batch, pos, d_mlp
        mlp_out = site(f"{block}.mlp.out", linear(w, f"{at}.mlp.down_proj", mlp_post))
        x = site(f"{block}.resid_post", resid_mid + mlp_out)

    x = site("final_norm", rms_norm(w, "model.norm", x, eps, norm_dtype))
    return site("logits", linear(w, "lm_head", x))


def gpt2(model: Decoder, tokens: Tensor, positions: Tensor, visible: Tensor, site: Site) -> Tensor:
    """Serial blocks, LayerNorm before each part, learned positions, q, k and v from one projection."""
    w, c = model.weights, model.config
    eps, act = c.layer_norm_epsilon, ACTIVATIONS[c.activation_function]

    x = site("embed", w["transformer.wte.weight"][tokens])  # batch, pos, d_model
    x = x + w["transformer.wpe.weight"][positions]
    for layer in range(c.num_hidden_layers):
        block, at = f"blocks.{layer}", f"transformer.h.{layer}"
        resid_pre = site(f"{block}.resid_pre", x)  # batch, pos, d_model

        h = layer_norm(w, f"{at}.ln_1", resid_pre, eps)
        qkv = conv1d(w, f"{at}.attn.c_attn", h)  # batch, pos, 3 * d_model: all of q, then k, then v
        q, k, v = (split_heads(part, c.num_attention_heads) for part in qkv.chunk(3, dim=-1))
        q = site(f"{block}.attn.q", q)  # batch, pos, head, d_head
        k = site(f"{block}.attn.k", k)
        v = site(f"{block}.attn.v", v)
        scale = 1 / math.sqrt(q.shape[-1]) if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            scale = scale / (layer + 1)
        z = attend(q, k, v, scale, visible, model, block, site)
        attn_out = site(f"{block}.attn.out", conv1d(w, f"{at}.attn.c_proj", merge_heads(z)))
        resid_mid = site(f"{block}.resid_mid", resid_pre + attn_out)  # batch, pos, d_model

        h = layer_norm(w, f"{at}.ln_2", resid_mid, eps)
        mlp_post = site(f"{block}.mlp.post", act(conv1d(w, f"{at}.mlp.c_fc", h)))  # batch, pos, d_mlp
        mlp_out = site(f"{block}.mlp.out", conv1d(w, f"{at}.mlp.c_proj", mlp_post))
        x = site(f"{block}.resid_post", resid_mid + mlp_out)

    x = site("final_norm", layer_norm(w, "transformer.ln_f", x, eps))
    return site("logits", linear(w, "lm_head", x))


def gpt_neox(model: Decoder, tokens: Tensor, positions: Tensor, visible: Tensor, site: Site) -> Tensor:
    """Parallel or serial blocks, LayerNorm, rotary on part of each head, q, k and v side by side per head.

    In a parallel block the MLP reads the stream that enters the block, so no `resid_mid` exists.
    """
    w, c = model.weights, model.config
    eps, act = c.layer_norm_eps, ACTIVATIONS[c.hidden_act]

    x = site("embed", w["gpt_neox.embed_in.weight"][tokens])  # batch, pos, d_model
    for layer in range(c.num_hidden_layers):
        block, at = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        resid_pre = site(f"{block}.resid_pre", x)  # batch, pos, d_model

        h = layer_norm(w, f"{at}.input_layernorm", resid_pre, eps)
        qkv = linear(w, f"{at}.attention.query_key_value", h)
        qkv = split_heads(qkv, c.num_attention_heads)  # batch, pos, head, 3 * d_head: q, k, v of each head
        q, k, v = qkv.chunk(3, dim=-1)
        q = site(f"{block}.attn.q", q)  # batch, pos, head, d_head
        k = site(f"{block}.attn.k", k)
        v = site(f"{block}.attn.v", v)
        q, k = rotate(q, positions, model), rotate(k, positions, model)
        z = attend(q, k, v, 1 / math.sqrt(q.shape[-1]), visible, model, block, site)
        attn_out = site(f"{block}.attn.out", linear(w, f"{at}.attention.dense", merge_heads(z)))

        resid = resid_pre + attn_out
        if not c.use_parallel_residual:
            resid = site(f"{block}.resid_mid", resid)  # batch, pos, d_model
        h = resid_pre if c.use_parallel_residual else resid
        h = layer_norm(w, f"{at}.post_attention_layernorm", h, eps)
        mlp_post = act(linear(w, f"{at}.mlp.dense_h_to_4h", h))
        mlp_post = site(f"{block}.mlp.post", mlp_post)  # batch, pos, d_mlp
        mlp_out = site(f"{block}.mlp.out", linear(w, f"{at}.mlp.dense_4h_to_h", mlp_post))
        x = site(f"{block}.resid_post", resid + mlp_out)

    x = site("final_norm", layer_norm(w, "gpt_neox.final_layer_norm", x, eps))
    return site("logits", linear(w, "lm_head", x))


FAMILIES: Mapping[str, Callable[[Decoder, Tensor, Tensor, Tensor, Site], Tensor]] = {
    "llama": llama,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
}


# --- reading a model -------------------------------------------------------------------------------------


def read_model(model: nn.Module, attn_implementation: str | None, islands: Literal["hf"] | None) -> Decoder:
    """Copy what a forward pass needs out of a Hugging Face model, in float64 on the model's device.

    Args are those of `oracle.Oracle`. Raises ModelError on everything that these functions would compute
    differently from the model.
    """
    config: Any = getattr(model, "config", None)
    family: str = getattr(config, "model_type", "")
    if family not in FAMILIES:
        raise ModelError(f"the oracle knows {', '.join(FAMILIES)}, not {family or type(model).__name__!r}")
    _refuse_config(config, family)
    if attn_implementation is None:
        attn_implementation = getattr(config, "_attn_implementation", None)
    if islands is not None and (islands != "hf" or attn_implementation not in ("eager", "sdpa")):
        raise ModelError(
            f"islands={islands!r} with {attn_implementation!r} attention is not known; "
            "give attn_implementation='eager' or 'sdpa', or islands=None for float64 throughout"
        )
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            raise ModelError(f"weight {name!r} is {tensor.dtype}: the oracle reads unquantized weights only")
        tensors[name] = tensor.detach().to(torch.float64, copy=True)
    return Decoder(
        config,
        Weights(tensors),
        Islands() if islands is None else _hugging_face_islands(family, attn_implementation),
        None if family == "gpt2" else _frequencies(model, config, family, islands),
    )


def _hugging_face_islands(family: str, attn_implementation: str | None) -> Islands:
    low, full = torch.float32, torch.float64
    return Islands(
        rms_norm=low if family == "llama" else full,
        rotary_table=low if family in ("llama", "gpt_neox") else full,
        softmax=low if family in ("llama", "gpt_neox") and attn_implementation == "eager" else full,
    )


def _frequencies(model: nn.Module, config: Any, family: str, islands: str | None) -> Tensor:
    """The rotary frequencies by definition or, with islands, as the model holds them (a rounded buffer)."""
    rope, d_head = config.rope_parameters, config.hidden_size // config.num_attention_heads
    if family == "llama":
        d_head = config.head_dim or d_head
    dim = int(d_head * rope.get("partial_rotary_factor", 1.0))
    defined = rotary_frequencies(rope["rope_theta"], dim)
    held = [b for name, b in model.named_buffers() if name.rpartition("rotary_emb.")[2] == "inv_freq"]
    if len(held) != 1 or held[0].shape != defined.shape:
        raise ModelError(f"the model does not hold one table of {dim // 2} rotary frequencies, as its config says")
    table = held[0].detach().to(torch.float64, copy=True)
    # 2^-8 is the rounding of bfloat16: a model that was cast as a whole has had its table cast too.
    if not torch.allclose(table.cpu(), defined, rtol=2**-8, atol=0):
        raise ModelError(f"the model's rotary frequencies are not those of its config, {rope}")
    return defined.to(table.device) if islands is None else table


def _refuse_config(config: Any, family: str) -> None:
    """Raise ModelError for each option that would make the model compute something else."""

    def option(name: str, default: Any = None) -> Any:
        return getattr(config, name, default)

    rope = option("rope_parameters") or {}
    activation = option("activation_function" if family == "gpt2" else "hidden_act")
    refused = {
        f"activation {activation!r} (known: {', '.join(ACTIVATIONS)})": activation not in ACTIVATIONS,
        f"rope_parameters={rope} (only rope_type 'default')": family != "gpt2" and rope.get("rope_type") != "default",
        "sliding_window": option("sliding_window") is not None,
        "attention_chunk_size": option("attention_chunk_size") is not None,
        "layer_types": any(kind != "full_attention" for kind in option("layer_types") or ()),
        "is_causal=False": option("is_causal", True) is False,
        "add_cross_attention": bool(option("add_cross_attention")),
        "is_encoder_decoder": bool(option("is_encoder_decoder")),
        "reorder_and_upcast_attn": bool(option("reorder_and_upcast_attn")),
    }
    found = [what for what, present in refused.items() if present]
    if found:
        raise ModelError(f"the oracle does not state a {family} model with {'; '.join(found)}")
