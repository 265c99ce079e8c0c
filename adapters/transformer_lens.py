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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from .capabilities import Support
from .errors import InputError, SiteError, UnsupportedError
from .families import FAMILIES
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
    from transformer_lens.model_bridge import AttentionBridge, NormalizationBridge
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

HOOKS_OF: Mapping[str, Mapping[str, str]] = {
    "bert": {"embed": "embed.hook_out", "attn.out": "attn.o.hook_out"},
    "gemma2": {"logits": ""},
    "qwen3": {"attn.q": "attn.q_norm.hook_out", "attn.k": "attn.k_norm.hook_out"},  # its hook_q is before the norm
}
"""The same where a family has them elsewhere; the empty name is what the model returns."""

_DELEGATED = Support(
    "upstream",
    "TransformerLens leaves the attention of this family to the Hugging Face module, and shows the pattern when it is "
    "used already: it discards an edit there with a warning",
)
_REPLACED = Support(
    "upstream",
    "TransformerLens replaces the modules of the models that it knows by its own, with hook points at fixed places; "
    "name a canonical site, or native:HOOK_NAME",
)

_OUTPUT = "what the model returns"
SINGLE_SOFTMAX = ("llama", "gpt_neox", "qwen2", "qwen3", "mistral", "gemma2", "phi3")
"""Families whose eager attention in Hugging Face takes its softmax in float32 whatever the dtype of the model."""


class HookKey(NamedTuple):
    """A hook point by its own name, and whether an edit there is made in place; it then has a hook of its own."""

    name: str
    shared: bool


class TransformerLensInspector(Inspector):
    """TransformerLens' own hook points, on a shadow of the model that shares its weights.

    Raises:
        UnsupportedError: TransformerLens knows no such architecture, or would compute something else than this model.
    """

    name: ClassVar[str] = "transformer_lens"
    library: ClassVar[str | None] = "transformer-lens"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "capture.module": _REPLACED,
        "edit.module": _REPLACED,
        "edit.pattern@opt": _DELEGATED,
        "edit.pattern@bert": _DELEGATED,
    }

    def _open(self) -> None:
        family = self.architecture.family
        if family is not None and not any(family is known for known in FAMILIES):
            raise UnsupportedError(
                f"family {family.name!r} is the caller's own: it says which modules its sites are at, not which hook "
                "points of TransformerLens. Open another backend, or leave family= out and use native: names"
            )
        architecture = _architecture(self.model)
        self._shadow = Shadow(self.model)
        module = self._shadow.module
        module.config._attn_implementation = "eager"  # whose additive mask TransformerLens' attention takes
        with _settings_kept(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Hook alias .* did not resolve")  # of parts this model lacks
            self._bridge = build_bridge_from_module(
                module, architecture, hf_config=module.config, post_adapter_hook=self._before_wrapping
            )
        parts: list[Any] = list(self._bridge.modules())
        wrapping = [part for part in parts if "_original_component" in part._modules]
        if lacking := [str(part.name) for part in wrapping if part._modules["_original_component"] is None]:
            raise UnsupportedError(
                f"TransformerLens would run {', '.join(lacking)}, which this {architecture} lacks; open another backend"
            )
        self._wrapped = [(part, part.original_component) for part in wrapping]
        self._attentions = [part for part in parts if isinstance(part, AttentionBridge)]
        self._points: dict[str, str] = {name: point.name or name for name, point in self._bridge.hook_dict.items()}
        self._softmax_dtype: torch.dtype | None = None
        if self.architecture.family is not None:
            self._after_wrapping(parts)

    def _release(self) -> None:
        del self._bridge, self._shadow, self._wrapped, self._attentions

    def _locate(self, site: Site) -> Location:
        if site.kind == "module":
            raise self._refusal("capture.module", site)
        if site.kind == "native":
            return Location(HookKey(self._point(site, site.address), False))
        family = self.architecture.family
        assert family is not None
        block = "" if site.layer is None else f"blocks.{site.layer}."
        name = HOOKS_OF.get(family.name, {}).get(site.local, HOOK_NAMES[site.local])
        if site.local == "resid_mid" and family.norms:  # what goes on is what the norm returns
            name = "ln1.hook_out"
        if not name:
            return Location(HookKey(_OUTPUT, False))
        shared = self.architecture.address(site).shared
        view = View("head first") if "_norm." in name else View()  # those of q and k come after the transposition
        return Location(HookKey(self._point(site, block + name), shared), view, shared)

    def _native_address(self, site: Site, location: Location) -> str:
        assert isinstance(location.key, HookKey)
        if location.key.name == _OUTPUT:
            raise SiteError(f"site {site.name!r}: TransformerLens has no hook at what this model returns")
        return location.key.name

    def _point(self, site: Site, name: str) -> str:
        """The hook point's own name, the same for all its aliases."""
        if name not in self._points:
            near = difflib.get_close_matches(name, self._points, n=3, cutoff=0.4) or list(self._points)[:3]
            shown = ", ".join(f"'native:{n}'" for n in near)
            raise SiteError(f"site {site.name!r}: TransformerLens has no hook {name!r} in this model; nearest: {shown}")
        try:
            self._bridge.check_hooks_to_add(self._bridge.get_hook_point(name), name, print)
        except ValueError as error:
            raise SiteError(
                f"site {site.name!r}: TransformerLens makes this tensor only on request, and this backend does not "
                f"request it; name another ({error})"
            ) from None
        return self._points[name]

    def _forward(self, plan: Plan) -> Any:
        self._sync(plan)
        kwargs = dict(plan.kwargs)
        if len(plan.args) > 1:
            raise InputError(f"inputs are {len(plan.args)} tensors; TransformerLens takes one: give the rest by name")
        tokens = plan.args[0] if plan.args else kwargs.pop("input_ids", None)
        # A native edit at a shared hook point is TransformerLens' own, of one branch: it follows the edit of both.
        probes = sorted(plan.probes(), key=lambda probe: not _key(probe).shared)
        hooks = [(_key(probe).name, _hook(probe)) for probe in probes if _key(probe).name != _OUTPUT]
        try:
            with _no_edit_discarded(plan):
                logits, cache = self._bridge.run_with_hooks(
                    tokens, fwd_hooks=hooks, return_type="logits_and_cache", **kwargs
                )
        finally:
            for attention in self._attentions:  # the bridge would keep every pattern until the next forward
                attention._pattern = None
        for probe in probes:
            if _key(probe).name == _OUTPUT:
                logits = probe(logits)
        if silent := [probe.visits[0].site.name for probe in probes if not probe.calls]:
            raise SiteError(f"site {silent[0]!r}: TransformerLens has this hook but never calls it in this model")
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _sync(self, plan: Plan) -> None:
        """Take over modes as the caller has them now: the shadow's modules, then TransformerLens' around them."""
        self._shadow.sync()
        for part, original in self._wrapped:
            if part.training is not original.training:
                part.training = original.training
        if self.architecture.family is not None:
            config: Any = self.model.config
            eager = config._attn_implementation == "eager" or plan.needs(lambda site: site.local == "attn.pattern")
            self._softmax_dtype = torch.float32 if eager and self.architecture.family.name in SINGLE_SOFTMAX else None

    # ---- where TransformerLens would compute something else than the model

    def _before_wrapping(self, adapter: Any) -> None:
        family = self.architecture.family
        if family is None:
            return
        if family.name == "opt" and "final_norm" in self.architecture.sites.absent:
            adapter.component_mapping.pop("ln_final", None)  # which it takes for granted by a width
        query = family.blocks["attn.q"]
        if query.layout == "h d":
            return
        sites = [self.architecture.sites.canonical[f"blocks.0.attn.{part}"] for part in "qkv"]
        views = [locate(self.architecture.address(site), site, self.architecture.sizes).view for site in sites]
        projection = query.module.rpartition(".")[2]

        def split(attention: nn.Module) -> list[nn.Module]:
            _restore_dropout(attention)
            fused = _Fused(getattr(attention, projection))
            return [_Part(fused, view) for view in views]

        adapter.component_mapping["blocks"].submodules["attn"].split_qkv_matrix = split

    def _after_wrapping(self, parts: list[Any]) -> None:
        for part in parts:
            if isinstance(part, NormalizationBridge):
                part.use_native_layernorm_autograd = True  # the model's own norm, where there would be a formula for it
            if isinstance(part, AttentionBridge):
                if self._dtype == torch.float64:
                    part._masked_softmax = self._softmax
                for name, hooks in vars(part.original_component).items():  # the caller's: that module is never called
                    if name.startswith(("_forward_", "_backward_")) and isinstance(hooks, dict):
                        vars(part)[name] = hooks

    def _softmax(self, scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Attention of a float64 model, rounded to float32 where the model itself rounds, and only there."""
        return torch.nn.functional.softmax(scores, dim=-1, dtype=self._softmax_dtype).to(scores.dtype)


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
        out = self.view.read(self.fused(hidden), len(hidden)).flatten(-2)
        if self.view.part == 2:
            self.fused.last = None
        return out


def _restore_dropout(attention: Any) -> None:
    """Dropout that TransformerLens' attention leaves out: gpt2's after the projection, gpt_neox's of the pattern."""
    if isinstance(getattr(attention, "resid_dropout", None), nn.Module):
        attention.c_proj.register_forward_hook(lambda module, args, output: attention.resid_dropout(output))
    rate = getattr(attention, "attention_dropout", None)
    if isinstance(rate, float):
        attention.attention_dropout = lambda pattern: torch.nn.functional.dropout(pattern, rate, attention.training)


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
    known = list(SUPPORTED_ARCHITECTURES)
    near = difflib.get_close_matches(type(model).__name__, known, n=3, cutoff=0.4) or known[:3]
    raise UnsupportedError(
        f"TransformerLens cannot wrap a {type(model).__name__}; it takes the Hugging Face models that it knows, such "
        f"as {', '.join(near)}. Open another backend, such as 'hooks', for any other module"
    )


def _key(probe: Probe) -> HookKey:
    assert isinstance(probe.key, HookKey)
    return probe.key


def _hook(probe: Probe) -> Callable[..., Any]:
    def hook(tensor: Any, hook: Any) -> Any:  # TransformerLens calls it with hook=
        return probe(tensor)

    return hook


@contextmanager
def _no_edit_discarded(plan: Plan) -> Iterator[None]:
    """TransformerLens only warns when it shows a hook what was used already; an edit there must not pass for one."""
    native = [visit.site.name for visit in plan.visits if visit.late]
    if not native:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*edit is discarded")
        try:
            yield
        except UserWarning as warning:
            raise UnsupportedError(f"edit of {', '.join(map(repr, native))}: {warning}") from None
