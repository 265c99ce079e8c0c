"""The Inspector: one interface to record and edit what happens inside a network, on any backend.

    with open_inspector("nnsight", model, tokenizer=tok) as lens:
        run = lens.run("Hello", capture=["blocks.*.resid_post"], edits=[zero("blocks.7.attn.z", heads=[4])])

This class validates, plans and assembles; a backend implements `_forward(plan)` and, where its addresses are not
PyTorch modules, `_locate(site)`. Everything promised in CONTRIBUTING under "the contract" that is not a matter of one
library is done here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .architectures import Architecture, describe
from .capabilities import CAPABILITIES, FAMILY_NAMES, Support, check_capability
from .decoding import Sampler, decode
from .edits import Edit
from .errors import ClosedError, InputError, SiteError
from .families import Family
from .inputs import Inputs, left_padded, model_mask
from .metrics import Metric, total
from .padding import pad_token, refuse_unmasked
from .plan import Location, Look, Plan, Point, StopForward, locate
from .planning import Planner, SiteNames
from .run import Generation, Run
from .sites import Site
from .state import contained

if TYPE_CHECKING:
    from .attribution import Attribution, Target
    from .recording import Recording


class Inspector(Planner, ABC):
    """Records and edits the inside of one model through one library.

    Args:
        model: any `nn.Module`; language models of a known family have canonical sites, others `module:` sites.
        tokenizer: needed only for inputs given as text; never changed.
        family: where canonical sites live in a model of no known family.
    """

    name: ClassVar[str]
    library: ClassVar[str | None] = None
    """Distribution whose version stands for this backend; None for PyTorch itself."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in cls.unsupported:
            capability, _, family = name.partition("@")
            check_capability(capability, f"unsupported of {cls.__name__}")
            if family and family not in FAMILY_NAMES:
                raise InputError(f"unsupported of {cls.__name__}: {name!r} names none of {', '.join(FAMILY_NAMES)}")

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, family: Family | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is {type(model).__name__}; it must be a torch.nn.Module")
        self.model = model
        self.tokenizer = tokenizer
        self.architecture: Architecture = describe(model, family)
        if self.architecture.family is not None:
            self._require(f"family.{self.architecture.family.name}")
        self._closed = False
        self._running = False
        self._like = next((p for p in model.parameters() if p.is_floating_point()), None)
        self._dtype = self._like.dtype if self._like is not None else torch.get_default_dtype()
        with contained(self._device):
            self._open()

    # ---- what a backend implements

    @abstractmethod
    def _forward(self, plan: Plan) -> Any:
        """Run one forward through the library, calling every probe of the plan; returns the model's output."""

    def _locate(self, site: Site) -> Location:
        """Where a site lives in the library; by default at PyTorch modules, by `Point`.

        Raises:
            SiteError: the library has no such address.
        """
        if site.kind == "canonical":
            return locate(self.architecture.address(site), site, self.architecture.sizes)
        if site.kind == "module":
            return Location(Point(site.module.path, site.module.side))
        raise self._refusal("capture.native", site)

    def _native_address(self, site: Site, location: Location) -> str:
        """The library's own spelling of a location; by default `PATH.output` or `PATH.input`."""
        if not isinstance(location.key, Point) or location.view.layout or location.key.side == "softmax":
            raise SiteError(
                f"site {site.name!r}: backend {self.name!r} has no address of its own for exactly this tensor"
            )
        return f"{location.key.path}.{location.key.side}"

    def _mask(self, mask: Tensor, queries: int) -> Any:
        """What the library wants as `attention_mask` for the last `queries` columns of a padded batch."""
        family = self.architecture.family
        if family is not None and not family.causal:  # every query sees every real key
            return mask
        return model_mask(mask, queries, self._dtype, getattr(self.model, "config", None))

    def _open(self) -> None:
        """Wrap the model."""

    def _release(self) -> None:
        """Undo whatever `_open` did."""

    # ---- what a user calls

    @classmethod
    def supports(cls) -> dict[str, Support]:
        """Every capability of this backend with its state and, where not `supported`, the reason."""
        states = {name: cls.unsupported.get(name, Support()) for name in CAPABILITIES}
        if cls._locate is Inspector._locate and states["capture.native"]:
            states["capture.native"] = Support("notimpl", "its addresses are those of module: sites")
        if cls.attribute is Inspector.attribute and states["attribute"]:
            states["attribute"] = Support("notimpl", "input attribution through this backend is not written yet")
        if cls.record is Inspector.record:
            states["record"] = Support("never", "it has no recorder; crosslens.tasks.Recorder records any nn.Module")
        return states

    @property
    def capabilities(self) -> dict[str, Support]:
        """As `supports()`."""
        return self.supports()

    def sites(self) -> list[Site]:
        """All canonical sites of the model in order of execution; then its modules' outputs, where they can be read."""
        table = self.architecture.sites
        if not self.capabilities["capture.module"]:
            return list(table.canonical.values())
        modules = [s for path in sorted(table.modules) for s in table.resolve(f"module:{path}:output")]
        return [*table.canonical.values(), *modules]

    def native_address(self, site: str | Site) -> str:
        """The library's own address of a canonical site, as `native:ADDRESS` takes it.

        Raises:
            SiteError: no such site, or the library has no address for exactly this tensor.
            UnsupportedError: the backend has no native addresses.
        """
        self._require("capture.native")
        (found,) = self._resolve(site)
        return self._native_address(found, self._locate(found))

    def run(
        self,
        inputs: Any,
        *,
        capture: SiteNames = (),
        edits: Iterable[Edit] = (),
        until: str | Site | None = None,
    ) -> Run:
        """One forward, without gradients, in the mode that the model is in: while it trains, dropout acts.

        Args:
            inputs: a text, texts, token ids (batch, pos), or a mapping with `input_ids` and `attention_mask`; for
                other modules a tensor, a tuple of arguments, or a mapping of keyword arguments.
            capture: sites or globs to record; each tensor is the caller's own copy.
            edits: applied in the order of execution, and in the order given at one site; captures see them.
            until: stop the forward at this site, after capturing it.

        Raises:
            SiteError, EditError, InputError, UnsupportedError: before the model runs.
            ClosedError: after `close()`.
        """
        self._check_open()
        ready = self._prepare(inputs)
        plan = self._plan(ready, ready.geometry, capture, edits, until)
        output = self._execute(plan)
        return Run(self._in_order(plan, capture), output, ready.geometry, None if until is None else str(until))

    def gradients(
        self, inputs: Any, sites: SiteNames, metric: Metric, *, edits: Iterable[Edit] = ()
    ) -> dict[str, Tensor]:
        """Gradient of a metric at each site: site name -> tensor of the site's shape.

        Args:
            inputs: as in `run`.
            sites: sites or globs.
            metric: logits (batch, pos, d_vocab) -> a number, or one a row (their sum is differentiated, so each
                row gets its own gradient). For a model without logits it gets the model's output.
            edits: as in `run`; the gradient at an edited site is with respect to the edited value.

        Raises:
            InputError: the metric does not return a number that depends on the model.
            SiteError, EditError, UnsupportedError: as in `run`.
        """
        self._check_open()
        self._require("gradients")
        ready = self._prepare(inputs)
        plan = self._plan(ready, ready.geometry, sites, edits, None, grad=True)
        output = self._execute(plan)
        with torch.inference_mode(False), torch.enable_grad():
            value = total(metric, output)
            names = list(plan.live)
            if not value.requires_grad:
                raise InputError("the metric does not depend on the model's output; it must be computed from it")
            grads = torch.autograd.grad(value, [plan.live[n][0] for n in names], allow_unused=True)
        out = {}
        for name, grad in zip(names, grads, strict=True):
            raw, view = plan.live[name]
            read = view.read(torch.zeros_like(raw) if grad is None else grad, ready.geometry.batch)
            out[name] = read.detach().clone()
        return {site.name: out[site.name] for site in self._resolve(sites)}

    def watch(self, inputs: Any, sites: SiteNames, look: Look) -> None:
        """One forward in which `look(site name, tensor)` reads each site where it passes.

        The tensor is the model's own, and nothing is copied: `look` must not change it, nor keep it.

        Args:
            inputs, sites: as in `run`.

        Raises:
            As `run`.
        """
        self._check_open()
        ready = self._prepare(inputs)
        plan = self._plan(ready, ready.geometry, sites, (), None)
        plan.look = look
        self._execute(plan)

    def generate(
        self,
        inputs: Any,
        *,
        max_new_tokens: int,
        capture: SiteNames = (),
        edits: Iterable[Edit] = (),
        use_cache: bool = True,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        stop_at: int | None = None,
    ) -> Generation:
        """Generate, with captures and edits at absolute positions of prompt + continuation.

        Args:
            inputs: as in `run`; right padding is moved to the left.
            max_new_tokens: number of tokens to make.
            capture: sites to record at every position that is read, (batch, prompt + new - 1, ...).
            edits: apply at their positions whatever the cache does; without `positions`, at every position.
            use_cache: keep keys and values; without it every step reads everything again, with the same result.
            temperature: 0 takes the likeliest token; otherwise sample, with a generator of its own from `seed`.
            top_k: sample among the k likeliest.
            seed: of the sampler; the global random state is neither read nor changed.
            stop_at: token id after which a row is finished and padded with that id; generation ends when all are.

        Raises:
            As `run`; InputError also for a model that has no language-model head.
        """
        self._check_open()
        self._require("generate" if use_cache else "generate.uncached")
        family = self.architecture.family
        if family is None or not family.causal:
            raise InputError("generate() needs a causal language model of a known family; this model is none")
        sampler = Sampler(max_new_tokens, temperature, top_k, seed, stop_at)
        ready = left_padded(self._prepare(inputs))
        capture, edits = self._resolve(capture), list(edits)
        if capture:
            self._require("generate.capture")
        if edits:
            self._require("generate.edit")
        return decode(self, ready, capture, edits, sampler, use_cache)

    def attribute(
        self, inputs: Any, target: Target | int, *, method: str, steps: int | None = None,
        baseline: str | int | Tensor | None = None, site: str | Site | None = None,
    ) -> Attribution:  # fmt: skip
        """What each token of the input contributes to a target: see `attribution.AttributionInspector.attribute`.

        Raises:
            UnsupportedError: this backend's library does not attribute.
        """
        self._check_open()
        raise self._refusal("attribute")

    def record(self, sites: SiteNames, **options: Any) -> Recording:
        """Record key figures of training steps by category, through the library's own recorder.

        Raises:
            UnsupportedError: this backend's library has none.
        """
        self._check_open()
        raise self._refusal("record")

    def close(self) -> None:
        """Leave the model as it was found. Closing twice is allowed."""
        if not self._closed:
            self._closed = True
            with contained(self._device):
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- running

    def _execute(self, plan: Plan) -> Any:
        """One forward of the plan, with nothing left behind whatever happens in it."""
        if self._running:
            raise InputError(
                f"this {self.name} inspector is in the middle of a forward and cannot start another inside it; inside "
                f"apply(), use a second inspector, open_inspector({self.name!r}, model)"
            )
        self._running = True
        try:
            with contained(self._device), torch.inference_mode(False), torch.set_grad_enabled(plan.grad):
                output = self._forward(plan)
        except StopForward:
            output = None
        finally:
            self._running = False
        missed = [visit.site.name for visit in plan.visits if visit.site.name not in plan.reached]
        if missed:
            raise SiteError(
                f"site {missed[0]!r} did not run in this forward: its module was not called, or not that often, or the "
                "forward stopped before it"
            )
        return output

    def _prepare(self, inputs: Any) -> Inputs:
        ready = super()._prepare(inputs)
        refuse_unmasked(inputs, ready.ids, pad_token(getattr(self.model, "config", None), self.tokenizer))
        return ready

    def _in_order(self, plan: Plan, capture: SiteNames) -> dict[str, Any]:
        return {site.name: plan.captured[site.name] for site in self._resolve(capture)}

    # ---- leaving no trace

    @property
    def _device(self) -> torch.device:
        return self._like.device if self._like is not None else torch.device("cpu")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {self.name} inspector is closed; open_inspector({self.name!r}, ...) opens another")
        if self._like is not None and self._like.dtype != self._dtype:
            raise InputError(
                f"the model was {self._dtype} when this inspector was opened and is {self._like.dtype} now; "
                "open another"
            )
