"""Where each canonical site lives in each model family: data, in one place.

To add a family, add one `Family` to `FAMILIES`: the `model_type` of its config, and an `Address` for every site that it
has; `family_draft.py` writes a first draft, and `family_check.py` says what of it does not hold. The conformance kit
walks every family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any, Literal

Side = Literal["input", "output", "softmax"]
Layout = Literal["", "h d", "part h d", "h part d", "parts", "flat", "head first"]


@dataclass(frozen=True)
class Address:
    """Where a tensor passes through a PyTorch module, and how the site's tensor lies in it.

    Args:
        module: dotted path from the model; `{L}` stands for the block number, the empty path for the model itself.
        side: the module's `input` (its first tensor argument) or `output` (the tensor, the first of a tuple, or the
            `logits` of a model's output), or `softmax`: what the softmax inside an eager attention module returns.
        layout: how the module's tensor holds the site: "" as it is; "h d" heads by head size on its last axis;
            "part h d" and "h part d" a fused projection of three equal parts; "parts" one of unequal parts, q then k
            then v; "flat" batch and positions on one axis; "head first" heads before positions.
        part: which of the three parts of a fused projection: 0 q, 1 k, 2 v.
        shared: the same tensor object also continues on another path (the residual), so an edit must be made in
            place to reach both.
    """

    module: str
    side: Side
    layout: Layout = ""
    part: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: the oracle's and the tables' name for it.
        model_types: `config.model_type` values that belong to it.
        parts: attributes that a model of it has; an encoder with and without a head are told apart by them.
        globals: address of each site outside the blocks; a site without one does not exist in these models.
        blocks: address of each site in a block, likewise.
        absent: config -> {site without its block: why this model lacks it}.
        norms: resid_mid and resid_post -> path of the norm that their sum passes, where it passes one before the
            residual stream goes on; empty where the stream is the plain sum of what is added.
        causal: whether a position sees only those before it.
        positions: name in the config of the number of learned positions; empty where there are none to run out of.
        token_types: name in the config of the number of token types; empty where a token has none.
        fits: whether a model of this config is laid out so, where others of its `model_types` are not.
    """

    name: str
    model_types: tuple[str, ...]
    parts: tuple[str, ...]
    globals: Mapping[str, Address]
    blocks: Mapping[str, Address]
    absent: Callable[[Any], dict[str, str]] = field(default=lambda config: {})
    norms: Mapping[str, str] = field(default_factory=dict)
    causal: bool = True
    positions: str = ""
    token_types: str = ""
    fits: Callable[[Any], bool] = field(default=lambda config: True)


def _llama(name: str, other: Mapping[str, Address] | None = None) -> Family:
    """Llama, and the families that follow its names; `other` are the sites of a block that they have elsewhere."""
    block = "model.layers.{L}"
    attn = f"{block}.self_attn"
    return Family(
        name=name,
        model_types=(name,),
        parts=("model", "lm_head"),
        globals={
            "embed": Address("model.embed_tokens", "output"),
            "final_norm": Address("model.norm", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.q_proj", "output", "h d"),
            "attn.k": Address(f"{attn}.k_proj", "output", "h d"),
            "attn.v": Address(f"{attn}.v_proj", "output", "h d"),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.o_proj", "input", "h d"),
            "attn.out": Address(attn, "output"),
            "resid_mid": Address(f"{block}.post_attention_layernorm", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.down_proj", "input"),
            "mlp.out": Address(f"{block}.mlp", "output"),
            "resid_post": Address(block, "output"),
            **(other or {}),
        },
    )


def _qwen3() -> Family:
    """Its queries and keys are normalised before they are turned: what enters the rotation is what the norms return."""
    attn = "model.layers.{L}.self_attn"
    return _llama(
        "qwen3",
        {"attn.q": Address(f"{attn}.q_norm", "output"), "attn.k": Address(f"{attn}.k_norm", "output")},
    )


def _gemma2() -> Family:
    """What is added to the residual stream has passed a norm of its own; logits are capped after the unembedding."""
    block = "model.layers.{L}"
    family = _llama(
        "gemma2",
        {
            "attn.out": Address(f"{block}.post_attention_layernorm", "output"),
            "resid_mid": Address(f"{block}.pre_feedforward_layernorm", "input", shared=True),
            "mlp.out": Address(f"{block}.post_feedforward_layernorm", "output"),
        },
    )
    return changed(family, globals={**family.globals, "logits": Address("", "output")})


def _phi3() -> Family:
    block = "model.layers.{L}"
    fused = f"{block}.self_attn.qkv_proj"
    return _llama(
        "phi3",
        {
            "attn.q": Address(fused, "output", "parts", 0),
            "attn.k": Address(fused, "output", "parts", 1),
            "attn.v": Address(fused, "output", "parts", 2),
            "attn.out": Address(f"{block}.resid_attn_dropout", "output"),
            "mlp.out": Address(f"{block}.resid_mlp_dropout", "output"),
        },
    )


def _gpt2() -> Family:
    block = "transformer.h.{L}"
    attn = f"{block}.attn"
    return Family(
        name="gpt2",
        model_types=("gpt2",),
        parts=("transformer", "lm_head"),
        positions="n_positions",
        globals={
            "embed": Address("transformer.wte", "output"),
            "final_norm": Address("transformer.ln_f", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.c_attn", "output", "part h d", 0),
            "attn.k": Address(f"{attn}.c_attn", "output", "part h d", 1),
            "attn.v": Address(f"{attn}.c_attn", "output", "part h d", 2),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.c_proj", "input", "h d"),
            "attn.out": Address(attn, "output"),
            "resid_mid": Address(f"{block}.ln_2", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.c_proj", "input"),
            "mlp.out": Address(f"{block}.mlp", "output"),
            "resid_post": Address(block, "output"),
        },
    )


def _gpt_neox() -> Family:
    block = "gpt_neox.layers.{L}"
    attn = f"{block}.attention"
    return Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        parts=("gpt_neox", "lm_head"),
        globals={
            "embed": Address("gpt_neox.embed_in", "output"),
            "final_norm": Address("gpt_neox.final_layer_norm", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.query_key_value", "output", "h part d", 0),
            "attn.k": Address(f"{attn}.query_key_value", "output", "h part d", 1),
            "attn.v": Address(f"{attn}.query_key_value", "output", "h part d", 2),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.dense", "input", "h d"),
            "attn.out": Address(f"{block}.post_attention_dropout", "output"),
            "resid_mid": Address(f"{block}.post_attention_layernorm", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.dense_4h_to_h", "input"),
            "mlp.out": Address(f"{block}.post_mlp_dropout", "output"),
            "resid_post": Address(block, "output"),
        },
        absent=_gpt_neox_absent,
    )


def _gpt_neox_absent(config: Any) -> dict[str, str]:
    if not getattr(config, "use_parallel_residual", True):
        return {}
    return {
        "resid_mid": (
            "gpt_neox runs attention and MLP in parallel from resid_pre (use_parallel_residual), so no residual "
            "stream exists between them; use resid_pre, attn.out or resid_post"
        )
    }


def _opt() -> Family:
    """Its MLP is no module, and works on batch and positions as one axis; what it adds is taken before its dropout."""
    block = "model.decoder.layers.{L}"
    attn = f"{block}.self_attn"
    return Family(
        name="opt",
        model_types=("opt",),
        parts=("model", "lm_head"),
        positions="max_position_embeddings",
        globals={
            "embed": Address("model.decoder.embed_tokens", "output"),
            "final_norm": Address("model.decoder.final_layer_norm", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.q_proj", "output", "h d"),
            "attn.k": Address(f"{attn}.k_proj", "output", "h d"),
            "attn.v": Address(f"{attn}.v_proj", "output", "h d"),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.out_proj", "input", "h d"),
            "attn.out": Address(attn, "output"),
            "resid_mid": Address(f"{block}.final_layer_norm", "input", "flat", shared=True),
            "mlp.post": Address(f"{block}.fc2", "input", "flat"),
            "mlp.out": Address(f"{block}.fc2", "output", "flat"),
            "resid_post": Address(block, "output"),
        },
        absent=_opt_absent,
        fits=lambda config: config.do_layer_norm_before,
    )


def _opt_post() -> Family:
    """The layout of OPT-350M, which normalises after each sum: what its norms return is read and goes on."""
    block = "model.decoder.layers.{L}"
    norms = {"resid_mid": f"{block}.self_attn_layer_norm", "resid_post": f"{block}.final_layer_norm"}
    family = _opt()
    blocks = {**family.blocks, "resid_mid": Address(norms["resid_mid"], "output")}
    return changed(family, blocks=blocks, norms=norms, fits=lambda config: not config.do_layer_norm_before)


def _opt_absent(config: Any) -> dict[str, str]:
    absent = {}
    if config.word_embed_proj_dim != config.hidden_size:
        absent["embed"] = "it embeds into fewer units than the residual stream has; use blocks.0.resid_pre"
        absent["final_norm"] = "what enters its unembedding has fewer units than the residual stream"
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        absent["final_norm"] = "it has no final norm; use the last resid_post"
    return absent


def _bert(base: str, head: str) -> Family:
    """An encoder by itself (base ""), under a head of somebody else's, or under BERT's own for masked words."""
    inside = f"{base}." if base else ""
    block = f"{inside}encoder.layer.{{L}}"
    attn = f"{block}.attention"
    outside = {"embed": Address(f"{inside}embeddings.word_embeddings", "output")}
    absent = {"final_norm": "an encoder by itself has no unembedding", "logits": "an encoder by itself has no logits"}
    if head:
        outside["final_norm"] = Address(f"{head}.predictions.transform", "output")
        outside["logits"] = Address(head, "output")
        absent = {}
    return Family(
        name="bert",
        model_types=("bert",),
        parts=tuple(part for part in (base or "encoder", head) if part),
        norms={"resid_mid": f"{attn}.output.LayerNorm", "resid_post": f"{block}.output.LayerNorm"},
        causal=False,
        positions="max_position_embeddings",
        token_types="type_vocab_size",
        globals=outside,
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.self.query", "output", "h d"),
            "attn.k": Address(f"{attn}.self.key", "output", "h d"),
            "attn.v": Address(f"{attn}.self.value", "output", "h d"),
            "attn.pattern": Address(f"{attn}.self", "softmax"),
            "attn.z": Address(f"{attn}.output.dense", "input", "h d"),
            "attn.out": Address(f"{attn}.output.dropout", "output"),
            "resid_mid": Address(f"{attn}.output", "output"),
            "mlp.post": Address(f"{block}.output.dense", "input"),
            "mlp.out": Address(f"{block}.output.dropout", "output"),
            "resid_post": Address(block, "output"),
        },
        absent=lambda config: absent,
    )


FAMILIES: tuple[Family, ...] = (
    _llama("llama"), _gpt2(), _gpt_neox(), _llama("qwen2"), _qwen3(), _llama("mistral"), _gemma2(), _phi3(), _opt(),
    _opt_post(), _bert("bert", "cls"), _bert("bert", ""), _bert("", ""),
)  # fmt: skip
"""The first that fits a model is its family."""
