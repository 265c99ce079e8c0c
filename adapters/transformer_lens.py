"""TransformerLens: a TransformerBridge on a weight-sharing shadow of the caller's model.

The bridge rewires the modules of the model that it wraps and offers no way back, so it gets a shadow. Sites are its
hook points, and `native:NAME` is any of its hook names, as in `native:blocks.0.attn.hook_rot_q`. Weights stay as they
are in the model: nothing is folded, centred or cast. Attention is always the eager one, which TransformerLens writes
out anew; while a model trains with dropout, its `attn.pattern` is the pattern after dropout.

Importing this module leaves one trace of importing TransformerLens: huggingface_hub then lets a config hold an integer
where it declares a float, which loading models through TransformerLens relies on.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.modeling_outputs import CausalLMOutputWithPast

from .capabilities import Support
from .errors import InputError, SiteError, UnsupportedError
from .inspector import Inspector
from .plan import Location, Plan, Probe, View, locate
from .shadow import Shadow
from .sites import Site


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Leave Python's warning filters and the log level of transformers as they are."""
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logger.setLevel(level)


with _settings_kept():  # TransformerLens sets both when it is imported
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources import build_bridge_from_module

HOOK_NAMES: Mapping[str, str] = {
    "embed": "hook_embed",
    "resid_pre": "hook_resid_pre",
    "attn.q": "attn.hook_q",
    "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v",
    "attn.pattern": "attn.hook_pattern",
    "attn.z": "attn.hook_z",
    "attn.out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp.post": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "final_norm": "ln_final.hook_out",
    "logits": "unembed.hook_out",
}
"""Site without its block -> name of the hook point, without its block."""

_REPLACED = Support(
    "upstream",
    "TransformerLens replaces the modules of language models that it knows by its own, with hook points at fixed places; "
    "name a canonical site, or native:HOOK_NAME",
)

SINGLE_SOFTMAX = ("llama", "gpt_neox")
"""Families whose eager attention in Hugging Face takes its softmax in float32 whatever the dtype of the model."""


class TransformerLensInspector(Inspector):
    """TransformerLens' own hook points, on a shadow of the model that shares its weights.

    Raises:
        UnsupportedError: TransformerLens knows no such architecture, or would compute something else than this model.
    """

    name: ClassVar[str] = "transformer_lens"
    library: ClassVar[str | None] = "transformer-lens"
    unsupported: ClassVar[Mapping[str, Support]] = {"capture.module": _REPLACED, "edit.module": _REPLACED}

    def _open(self) -> None:
        architecture = _architecture(self.model)
        self._shadow = Shadow(self.model)
        module = self._shadow.module
        module.config._attn_implementation = "eager"  # the additive mask that TransformerLens' attention wants
        self._fused: list[_Fused] = []
        with _settings_kept(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Hook alias .* did not resolve")  # of parts that this model lacks
            self._bridge = build_bridge_from_module(
                module, architecture, hf_config=module.config, post_adapter_hook=self._adjust
            )
        parts = self._bridge.modules()
        self._wrapped = [(part, part.original_component) for part in parts if "_original_component" in part._modules]
        self._points: dict[str, str] = {name: point.name or name for name, point in self._bridge.hook_dict.items()}

    def _release(self) -> None:
        del self._bridge, self._shadow, self._wrapped, self._fused

    def _locate(self, site: Site) -> Location:
        if site.kind == "module":
            raise self._refusal("capture.module", site)
        if site.kind == "native":
            return Location((self._native(site), False))
        block = "" if site.layer is None else f"blocks.{site.layer}."
        shared = self.architecture.address(site).shared
        return Location((self._points[block + HOOK_NAMES[site.local]], shared), shared=shared)

    def _native(self, site: Site) -> str:
        """The hook point's own name; aliases of one point become one key."""
        name = site.address
        if name not in self._points:
            near = difflib.get_close_matches(name, self._points, n=3, cutoff=0.4) or list(self._points)[:3]
            shown = ", ".join(f"'native:{n}'" for n in near)
            raise SiteError(f"site {site.name!r}: TransformerLens has no hook {name!r} in this model; nearest: {shown}")
        try:
            self._bridge.check_hooks_to_add(self._bridge.get_hook_point(name), name, lambda tensor, hook: None)
        except ValueError as error:  # off by default, because it costs memory
            raise SiteError(
                f"site {site.name!r}: TransformerLens computes this hook only on request ({error}), and this backend "
                "does not ask for it; name a site that is always computed"
            ) from None
        return self._points[name]

    def _forward(self, plan: Plan) -> Any:
        self._sync()
        kwargs = dict(plan.kwargs)
        if len(plan.args) > 1:
            raise InputError(f"inputs are {len(plan.args)} tensors; TransformerLens takes one: give the rest by name")
        tokens = plan.args[0] if plan.args else kwargs.pop("input_ids", None)
        # A native edit at a shared hook point is TransformerLens' own, of one branch: it comes after the edit of both.
        probes = sorted(plan.probes(), key=lambda probe: not cast(tuple[str, bool], probe.key)[1])
        hooks = [(cast(tuple[str, bool], probe.key)[0], _hook(probe)) for probe in probes]
        try:
            with _no_edit_discarded(probes):
                logits, cache = self._bridge.run_with_hooks(
                    tokens, fwd_hooks=hooks, return_type="logits_and_cache", **kwargs
                )
        finally:
            self._forget()
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _sync(self) -> None:
        """Modes as the caller has them now: first the shadow's modules, then TransformerLens' around them."""
        self._shadow.sync()
        for part, original in self._wrapped:
            if part.training is not original.training:
                part.training = original.training

    def _forget(self) -> None:
        """Let go of activations that the bridge would keep until the next forward."""
        for fused in self._fused:
            fused.last = None
        for part, _ in self._wrapped:
            if getattr(part, "_pattern", None) is not None:
                part._pattern = None

    def _adjust(self, adapter: Any) -> None:
        """Before wrapping: what TransformerLens would otherwise compute from copies, or leave out."""
        family, config = self.architecture.family, adapter.cfg
        if family is None:
            return
        own = self.model.config
        config.scale_attn_by_inverse_layer_idx = getattr(own, "scale_attn_by_inverse_layer_idx", False)
        query = family.blocks["attn.q"]
        if query.layout == "h d":
            return
        sites = [self.architecture.sites.canonical[f"blocks.0.attn.{part}"] for part in "qkv"]
        views = [locate(self.architecture.address(site), site, self.architecture.sizes).view for site in sites]
        projection = query.module.rpartition(".")[2]

        def split(attention: nn.Module) -> list[nn.Module]:
            fused = _Fused(getattr(attention, projection))
            self._fused.append(fused)
            _restore_dropout(attention)
            return [_Part(fused, view) for view in views]

        adapter.component_mapping["blocks"].submodules["attn"].split_qkv_matrix = split


class _Fused:
    """A fused projection of q, k and v, run once for the three.

    TransformerLens copies its weights into three layers when it wraps the model, and would not see them change.
    """

    def __init__(self, projection: nn.Module) -> None:
        self.projection = projection
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(batch, pos, d_model) -> (batch, pos, 3 * head * d_head)."""
        if self.last is None or self.last[0] is not hidden:
            self.last = (hidden, self.projection(hidden))
        return self.last[1]


class _Part(nn.Module):
    """One of q, k and v, as the module that TransformerLens expects: (batch, pos, d_model) -> (batch, pos, wide)."""

    def __init__(self, fused: _Fused, view: View) -> None:
        super().__init__()
        self.fused = fused
        self.view = view

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.view.read(self.fused(hidden)).flatten(-2)
        if self.view.part == 2:
            self.fused.last = None
        return out


def _restore_dropout(attention: Any) -> None:
    """Dropout that TransformerLens' attention leaves out: gpt2's after the projection, gpt_neox's of the pattern."""
    if isinstance(getattr(attention, "resid_dropout", None), nn.Module):
        attention.c_proj.register_forward_hook(lambda module, args, output: attention.resid_dropout(output))
    rate = getattr(attention, "attention_dropout", None)
    if isinstance(rate, float):
        attention.attention_dropout = lambda pattern: dropout(pattern, rate, attention.training)


def _architecture(model: nn.Module) -> str:
    """TransformerLens' name for the model's architecture: that of its class, or of the nearest base class."""
    for kind in type(model).__mro__:
        if kind.__name__ in SUPPORTED_ARCHITECTURES and hasattr(model, "config"):
            if not getattr(model.config, "scale_attn_weights", True):
                raise UnsupportedError(
                    "the model's config has scale_attn_weights=False, and TransformerLens divides attention scores by "
                    "the root of d_head all the same; open another backend"
                )
            return kind.__name__
    near = difflib.get_close_matches(type(model).__name__, SUPPORTED_ARCHITECTURES, n=3, cutoff=0.4)
    raise UnsupportedError(
        f"TransformerLens cannot wrap a {type(model).__name__}: it takes the Hugging Face models whose class it knows "
        f"({', '.join([*near, '...'])}); open another backend, such as 'hooks', for any other module"
    )


def _hook(probe: Probe) -> Callable[..., Any]:
    def hook(tensor: Any, hook: Any) -> Any:  # TransformerLens calls it with hook=
        return probe(tensor)

    return hook


@contextmanager
def _no_edit_discarded(probes: list[Probe]) -> Iterator[None]:
    """TransformerLens only warns when it shows a hook what was used already; an edit there must not pass for one."""
    native = next((v for p in probes for v in p.visits if v.late), None)
    if native is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*edit is discarded")
        try:
            yield
        except UserWarning as warning:
            raise UnsupportedError(f"edit at {native.site.name!r}: {warning}") from None
