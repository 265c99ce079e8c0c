"""Input attribution: what each token of the input contributes to one number computed from the logits.

    target = Target(paris, minus=rome, of="logit")  # token ids; at the last real token of each row
    found = lens.attribute(inputs, target, method="integrated_gradients", baseline="zero")
    found.scores  # (batch, pos), signed; found.delta says how far their sum is from what they explain

Every method is defined here, in `METHODS`, so that two libraries give the same numbers. The target is checked, the
padding taken off and the result laid out again in `AttributionInspector`; a library only ever sees rows of equal
length without padding, which end at the target's position: in a causal model no later token has a say in it.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from .capabilities import CAPABILITIES, Support
from .errors import InputError, SiteError, UnsupportedError
from .inputs import Geometry, Inputs
from .inspector import Inspector
from .plan import Location, Plan
from .sites import Site
from .state import contained

METHODS: dict[str, str] = {
    "saliency": "|d target / d embedding|, summed over its units (Simonyan et al. 2013, arXiv:1312.6034)",
    "input_x_gradient": "embedding times d target / d embedding (Shrikumar et al. 2016, arXiv:1605.01713)",
    "integrated_gradients": (
        "(embedding - baseline) times the mean gradient on the line between them, by Gauss-Legendre quadrature with "
        "`steps` nodes (Sundararajan et al. 2017, arXiv:1703.01365)"
    ),
    "occlusion": (
        "target, minus target with that token's embedding replaced by the baseline (Zeiler & Fergus 2013, "
        "arXiv:1311.2901)"
    ),
    "layer_gradient_x_activation": "activation at `site` times d target / d activation",
    "attention": "attention after softmax from the target's position, mean over layers and heads, whatever the token",
    "value_zeroing": (
        "1 - cosine of each block's output at the target's position with and without that token's value vectors, in "
        "float32, 0 below 1e-5, normalised to sum 1; mean over layers, whatever the token (Mohebbi et al. 2023, "
        "arXiv:2301.12971)"
    ),
}
"""Method -> what a score is. Embeddings are those of the site `embed`, before positions are added."""

WITH_BASELINE = ("integrated_gradients", "occlusion")
Quantity = Literal["logit", "probability"]
Tokens = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """The number that is attributed to the input, one for each row.

    Args:
        token: id of the token, one for all rows or one for each.
        minus: id of another token, whose logit or probability is subtracted.
        of: `logit`, or `probability` after softmax.
        position: where the logits are read; counts real tokens, -1 the last of each row.
    """

    token: Tokens
    minus: Tokens | None = None
    of: Quantity = "logit"
    position: int = -1


@dataclass(frozen=True, eq=False)
class Attribution:
    """What `attribute` found; the tensors are the caller's own.

    Attributes:
        scores: (batch, pos) score of each token: `units` summed over the other axes, or their mean for attention and
            value zeroing. 0 at padding and after the target's position.
        units: what `scores` were summed from: (batch, pos, d_model) for methods of embeddings; (batch, pos, ...) as
            the site for layer_gradient_x_activation; (batch, pos, layer, head) for attention; (batch, pos, layer) for
            value zeroing; None for occlusion.
        delta: (batch,) sum of the scores minus (target at the input minus target at the baseline), near 0 when enough
            steps were taken; None for methods that do not add up by construction.
        method: as asked for.
        target: as asked for.
        baseline: what stood for "no token", in words; None where the method has none.
        geometry: which column of each row holds which position.
    """

    scores: Tensor
    units: Tensor | None
    delta: Tensor | None
    method: str
    target: Target
    baseline: str | None
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Rows:
    """What a library is given: rows of one length, without padding, that end at the target's position.

    Attributes:
        ids: (rows, pos) token ids.
        embeds: (rows, pos, d_model) their embeddings, a leaf that requires gradients.
        token, minus: (rows,) ids of the target; `minus` is None where nothing is subtracted.
        of: what is read at them.
        positions: (rows, pos) position ids where the caller gave other ones than 0, 1, 2..., else None.
        baseline: (rows, pos, d_model), for methods that have one.
        steps: number of nodes of integrated gradients.
        location: of the site, for layer_gradient_x_activation.
    """

    ids: Tensor
    embeds: Tensor
    token: Tensor
    minus: Tensor | None
    of: Quantity
    positions: Tensor | None
    baseline: Tensor | None
    steps: int
    location: Location | None


class AttributionInspector(Inspector):
    """Base of the backends whose libraries attribute; one that also records and edits has a `_forward` of its own."""

    lacking: ClassVar[Mapping[str, Support]] = {}
    """Methods that the library does not have, or not right; each with state and reason."""

    @abstractmethod
    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """`units` (rows, pos, ...), or the scores themselves (rows, pos), and (rows,) convergence deltas, if any."""

    def _forward(self, plan: Plan) -> Any:
        raise UnsupportedError(
            f"backend {self.name!r} attributes (lens.attribute) and does nothing else; `crosslens backends` shows "
            "which record and edit a forward"
        )

    def attribute(
        self,
        inputs: Any,
        target: Target | int,
        *,
        method: str,
        steps: int | None = None,
        baseline: str | int | Tensor | None = None,
        site: str | Site | None = None,
    ) -> Attribution:
        """What each token of the input contributes to a target, by one of the library's own methods.

        Args:
            inputs: as in `run`.
            target: what is attributed; a token id alone stands for its logit at the last real token of each row.
            method: one of `METHODS`.
            steps: nodes of integrated_gradients; 64 unless told.
            baseline: of integrated_gradients and occlusion: `zero` (the embedding 0, the default), `pad` or a token
                id (that token's embedding), or embeddings, (d_model,) or (batch, pos, d_model).
            site: canonical site of layer_gradient_x_activation.

        Raises:
            InputError: no such method, an option that the method does not take, or a bad target or baseline.
            SiteError, UnsupportedError: as in `run`; also a method that the library lacks.
            ClosedError: after `close()`.
        """
        self._check_open()
        self._check_method(method, steps, baseline, site)
        location = None if site is None else self._layer(site)
        ready = self._prepare(inputs)
        target = target if isinstance(target, Target) else Target(target)
        columns = _columns(ready.geometry, target)
        token, minus = self._target_tokens(target, len(columns))
        with contained(self._device), torch.inference_mode(False):
            base, named = self._baseline(method, baseline, ready)
            layout = _Layout((len(columns), ready.geometry.columns), self._dtype, self._device)
            for length in sorted({len(own) for own in columns}):
                rows = [row for row, own in enumerate(columns) if len(own) == length]
                own = torch.tensor([columns[row] for row in rows])  # (rows, pos)
                part = self._rows(ready, rows, own, (token, minus, target.of), base, steps or 64, location)
                with torch.enable_grad():
                    layout.put(rows, own, *self._attribute(method, part))
        scores = _scores(method, layout.units)
        units = layout.units if layout.units.ndim > 2 else None
        return Attribution(scores, units, layout.delta, method, target, named, ready.geometry)

    def _rows(
        self, ready: Inputs, rows: list[int], own: Tensor, what: tuple[Tensor, Tensor | None, Quantity],
        base: Tensor | None, steps: int, location: Location | None,
    ) -> Rows:  # fmt: skip
        def pick(tensor: Tensor) -> Tensor:
            return tensor[torch.tensor(rows)[:, None], own].detach().clone()

        assert ready.ids is not None, "a language model has token ids"
        token, minus, of = what
        positions: Tensor | None = ready.kwargs.get("position_ids")
        if positions is not None:
            positions = pick(positions.expand_as(ready.ids))
            if torch.equal(positions.cpu(), torch.arange(own.shape[1]).expand_as(own)):
                positions = None  # the model's own
        ids = pick(ready.ids)
        return Rows(
            ids, self._embed(ids).requires_grad_(), token[rows], None if minus is None else minus[rows], of, positions,
            None if base is None else pick(base), steps, location,
        )  # fmt: skip

    # ---- what is asked for

    def _check_method(self, method: str, steps: Any, baseline: Any, site: Any) -> None:
        if method not in METHODS:
            near = difflib.get_close_matches(str(method), METHODS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"there is no method {method!r}; {hint}methods: {', '.join(METHODS)}")
        if not (support := self.lacking.get(method, Support())):
            raise UnsupportedError(
                f"backend {self.name!r} does not support the method {method!r} ({support.state}): {support.reason}"
            )
        for option, value, methods in (
            ("steps", steps, ("integrated_gradients",)),
            ("baseline", baseline, WITH_BASELINE),
            ("site", site, ("layer_gradient_x_activation",)),
        ):
            if value is not None and method not in methods:
                raise InputError(f"{method} takes no {option}=; it is for {' and '.join(methods)}")
        if method == "layer_gradient_x_activation" and site is None:
            raise InputError("layer_gradient_x_activation needs site=, the name of one canonical site")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise InputError(f"steps={steps!r}; it must be a whole number of at least 1")
        if self.architecture.family is None:
            raise InputError("attribute() needs a language model of a known family; this model is none")
        if any(getattr(module, "is_causal", True) is False for module in self.model.modules()):
            raise UnsupportedError("attribute() needs a causal model; this one's tokens see those that come after them")

    def _target_tokens(self, target: Target, batch: int) -> tuple[Tensor, Tensor | None]:
        if target.of not in get_args(Quantity):
            raise InputError(f"a target is of {' or '.join(map(repr, get_args(Quantity)))}, not of {target.of!r}")
        vocab = self.architecture.sizes["d_vocab"]
        token = _tokens(target.token, "token", batch, vocab).to(self._device)
        if target.minus is None:
            return token, None
        minus = _tokens(target.minus, "minus", batch, vocab).to(self._device)
        if (same := (token == minus).nonzero()).numel():
            row = int(same[0])
            raise InputError(f"the target of row {row} is token {int(token[row])} minus itself, which is always 0")
        return token, minus

    def _layer(self, name: str | Site) -> Location:
        """Where the libraries' layer methods find a site: at a module that takes or returns one tensor."""
        found = self._resolve(name)
        if len(found) != 1 or found[0].kind != "canonical":
            raise SiteError(f"site={str(name)!r} must be one canonical site, such as 'blocks.0.resid_post'")
        site = found[0]
        location = self._locate(site)
        key: Any = location.key
        if site.local == "attn.pattern":
            why = "it is made inside an attention module, and layer methods see only what enters and leaves one"
        elif location.shared:
            why = "the layer method follows it into the next module only, and not along the residual stream"
        elif site.local == "resid_pre":
            why = "it enters its block among other arguments; it is the resid_post of the block before, or embed"
        elif site.local == "attn.out" and key.path in self._attention_modules():
            why = "it leaves its module among other things; take attn.z"
        else:
            return location
        raise UnsupportedError(f"layer_gradient_x_activation at {site.name!r} through {self.library}: {why}")

    def _attention_modules(self) -> list[str]:
        """Path of each block's attention module."""
        return [self.architecture.address(site).module for site in self._resolve("blocks.*.attn.pattern")]

    def _baseline(self, method: str, baseline: Any, ready: Inputs) -> tuple[Tensor | None, str | None]:
        """(batch, columns, d_model), and its name."""
        if method not in WITH_BASELINE:
            return None, None
        assert ready.ids is not None, "a language model has token ids"
        shape = (*ready.ids.shape, self.architecture.sizes["d_model"])
        if baseline is None or (isinstance(baseline, str) and baseline == "zero"):
            return torch.zeros(shape, dtype=self._dtype, device=self._device), "zero embedding"
        if isinstance(baseline, Tensor):
            if baseline.shape not in (shape, shape[-1:]) or baseline.dtype != self._dtype:
                raise InputError(
                    f"the baseline is {tuple(baseline.shape)} {baseline.dtype}; it must be an embedding for every "
                    f"token, {shape}, or one for all, {shape[-1:]}, of {self._dtype}"
                )
            if not bool(baseline.isfinite().all()):
                raise InputError("the baseline holds numbers that are not finite")
            return baseline.detach().to(self._device).expand(shape), "given embedding"
        name = f"embedding of token {baseline!r}"
        if isinstance(baseline, str) and baseline == "pad":
            holders = (self.tokenizer, self.model.config)
            found = (getattr(holder, "pad_token_id", None) for holder in holders)
            baseline = next((token for token in found if token is not None), None)
            if baseline is None:
                raise InputError("baseline='pad', but neither tokenizer nor model has a pad token; give a token id")
            name = f"embedding of the pad token, {baseline}"
        if not isinstance(baseline, int) or isinstance(baseline, bool):
            raise InputError(f"baseline={baseline!r}; give 'zero', 'pad', a token id, or a tensor of embeddings")
        one = _tokens(baseline, "baseline", 1, self.architecture.sizes["d_vocab"]).to(self._device)
        return self._embed(one).expand(shape), name

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings as the site `embed` has them: before positions are added."""
        module = self.model.get_submodule(self.architecture.address(self._resolve("embed")[0]).module)
        with torch.no_grad():
            embeds: Tensor = module(ids)
        return embeds.detach().clone()


class _Layout:
    """Puts the results of rows of different lengths into tensors of the caller's shape."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape  # batch, columns
        self.units = torch.empty(0, dtype=dtype, device=device)
        self.delta: Tensor | None = None

    def put(self, rows: list[int], columns: Tensor, units: Tensor, delta: Tensor | None) -> None:
        if not self.units.numel():
            self.units = self.units.new_zeros(*self._shape, *units.shape[2:])
            self.delta = None if delta is None else self.units.new_zeros(self._shape[0])
        self.units[torch.tensor(rows)[:, None], columns] = units.detach().to(self.units)
        if self.delta is not None and delta is not None:
            self.delta[rows] = delta.detach().to(self.delta)


def attribution_only(reason: str) -> dict[str, Support]:
    """`unsupported` of a backend that attributes and does nothing else."""
    kept = ("attribute", "padding.left", "padding.right", "coexist")
    others = (name for name in CAPABILITIES if name not in kept and not name.startswith("family."))
    encoder = Support("notimpl", "rows are cut behind the target, which only a causal model does not notice")
    return {**{name: Support("never", reason) for name in others}, "family.bert": encoder}


def measure(logits: Tensor, token: Tensor, minus: Tensor | None, of: Quantity) -> Tensor:
    """(rows, d_vocab) logits -> (rows,) value of the target."""
    values = logits.softmax(-1) if of == "probability" else logits
    value = values.gather(1, token[:, None])[:, 0]
    return value if minus is None else value - values.gather(1, minus[:, None])[:, 0]


def _scores(method: str, units: Tensor) -> Tensor:
    if units.ndim == 2:
        return units
    flat = units.flatten(2)
    return flat.mean(-1) if method in ("attention", "value_zeroing") else flat.sum(-1)


def _columns(geometry: Geometry, target: Target) -> list[list[int]]:
    """Columns of each row's real tokens up to the target's position."""
    assert geometry.position is not None, "positions of a language model are known"
    if not isinstance(target.position, int) or isinstance(target.position, bool):
        raise InputError(f"a target's position is {target.position!r}; it must be a whole number")
    found = []
    for row, length in enumerate(geometry.lengths):
        last = target.position + length if target.position < 0 else target.position
        if not 0 <= last < length:
            raise InputError(f"the target's position {target.position} is not in row {row}, which has {length} tokens")
        real = geometry.position[row] >= 0
        found.append(real.nonzero()[: last + 1, 0].tolist())
    return found


def _tokens(given: Any, name: str, batch: int, vocab: int) -> Tensor:
    """(batch,) token ids."""
    what = f"{name} is {given!r}"
    try:
        ids = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(0)
    if ids.dtype not in (torch.int64, torch.int32) or ids.shape not in ((), (batch,)):
        raise InputError(
            f"{what}; it must be a token id, or one for each of the {batch} rows (a text has ids by its tokenizer)"
        )
    if bool(((ids < 0) | (ids >= vocab)).any()):
        raise InputError(f"{what}, out of range; the vocabulary has {vocab} tokens")
    return ids.long().expand(batch).clone()
