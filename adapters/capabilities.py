"""What a backend can do, by name, in four states.

The names and their groups are the rows of the feature table; the states follow Ibis' backend matrix. A backend
states only what it does *not* support, each with a reason; the conformance kit runs every capability, and
whatever is not `supported` must fail there, so a gap that closes by itself is noticed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from .errors import InputError

State = Literal["supported", "notimpl", "upstream", "never"]

FAMILY_NAMES = ("llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "opt", "bert")
"""Families whose sites have canonical names, as `transformers` calls their `model_type`."""

CAPABILITIES: dict[str, str] = {
    "capture.residual": "read embed, resid_pre, resid_mid, resid_post, final_norm and logits",
    "capture.attention": "read attn.q, attn.k, attn.v, attn.z and attn.out, per head",
    "capture.pattern": "read attention after softmax",
    "capture.mlp": "read the neurons and what the MLP adds to the residual stream",
    "capture.module": "read the input and output of any submodule of any nn.Module",
    "capture.native": "read by the library's own address",
    "edit.replace": "replace a tensor, or a slice of it, by a given value",
    "edit.add": "add a given value",
    "edit.scale": "multiply by a number",
    "edit.zero": "set to zero",
    "edit.apply": "pass through a function of the caller's",
    "edit.rows": "edit some rows of the batch only",
    "edit.positions": "edit some positions only",
    "edit.heads": "edit some heads only",
    "edit.units": "edit some units (neurons, dimensions, keys) only",
    "edit.resid_mid": "edit the residual stream between attention and MLP, for both",
    "edit.pattern": "edit attention after softmax",
    "edit.module": "edit the input or output of any submodule",
    "gradients": "gradient of a metric of the logits at a site",
    "gradients.pattern": "the same at attention after softmax",
    "until": "stop the forward at a site",
    "generate": "generate with a KV cache",
    "generate.capture": "read sites at every generated position",
    "generate.edit": "edit absolute positions while generating",
    "generate.uncached": "the same without a KV cache",
    "padding.left": "a left-padded batch gives each row what it gets alone",
    "padding.right": "a right-padded batch gives each row what it gets alone",
    "coexist": "work beside other inspectors open on the same model",
    "coexist.hooks": "hooks of the caller's own on the model act in a run",
    "dropout": "in training mode dropout acts, drawn from the caller's random state",
    "nested": "run inside an edit of another inspector's run",
    "attribute": "input attribution by the library's own methods",
    "record": "record key figures of training steps by category, by the library's own recorder",
    **{f"family.{name}": f"models of the family {name}" for name in FAMILY_NAMES},
}
"""Capability name -> what it means, one line each."""

_GROUP_OF_SITE = {
    "attn.q": "attention",
    "attn.k": "attention",
    "attn.v": "attention",
    "attn.z": "attention",
    "attn.out": "attention",
    "attn.pattern": "pattern",
    "mlp.post": "mlp",
    "mlp.out": "mlp",
}


@dataclass(frozen=True)
class Support:
    """State of one capability of one backend.

    Args:
        state: `supported`; `notimpl`, crosslens' to do; `upstream`, the library cannot; `never`, makes no sense here.
        reason: why, in one sentence; required unless supported.
        issue: address of the library's public issue, where there is one.
    """

    state: State = "supported"
    reason: str = ""
    issue: str | None = None

    def __post_init__(self) -> None:
        if self.state != "supported" and not self.reason:
            raise ValueError(f"a capability that is {self.state!r} needs a reason")

    def __bool__(self) -> bool:
        return self.state == "supported"


def capture_capability(kind: str, local: str) -> str:
    """Capability needed to read a site of `kind` whose name without its block is `local`."""
    if kind != "canonical":
        return f"capture.{kind}"
    return f"capture.{_GROUP_OF_SITE.get(local, 'residual')}"


def check_capability(name: str, where: str) -> None:
    """See that there is such a capability.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name not in CAPABILITIES:
        near = difflib.get_close_matches(name, CAPABILITIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CAPABILITIES)}"
        raise InputError(f"{where}: there is no capability {name!r}; {hint}")
