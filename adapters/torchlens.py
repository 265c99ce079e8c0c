"""torchlens: its live interventions, in the lightest of its forwards, `torchlens.record`.

While the model runs, torchlens asks at each call of a module and at each operation what is to be done there; the answer
is a probe. `record` is told to keep nothing, for probes make their own copies. torchlens shows what modules return but
not what they are given, so the input of a module is first sent through an `nn.Identity`, which torchlens shows like any
other module. Its `trace`, which also draws the graph, costs some four times as much and shows no more.

It runs on a `Shadow`: during a forward every module there has a wrapper. torchlens seeds the random generators itself;
they are put back before the model runs, so that the same seed gives what the plain model gives.

Before its first forward torchlens wraps PyTorch's functions in the whole process and leaves them so, which costs other
code a few per cent; `close()` takes the wrappers off. An exception out of a forward carries torchlens' notes on it.
"""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, ClassVar

import torch
import torchlens
from torch import Tensor, nn
from torchlens.backends.torch.wrappers import unwrap_torch
from torchlens.errors import CaptureAttemptFailedWarning, CaptureContextError, ScalarEscapeWarning
from torchlens.fastlog import RecordContext, halt
from torchlens.utils.rng import log_current_rng_states, set_rng_from_saved_states

from .attention import eager_attention
from .capabilities import Support
from .errors import SiteError, UnsupportedError
from .inspector import Inspector
from .plan import Location, Plan, Point, Probe, StopForward
from .shadow import Shadow
from .sites import Site

_OPERATION = re.compile(r"[a-z]\w*?_\d+(_\d+)?")
_REFUSED = "Refused an output replacement"  # a warning of torchlens, which then goes on without the edit


class TorchLensInspector(Inspector):
    """torchlens' live interventions, on a shadow of the model that shares its weights.

    `native:LABEL` is torchlens' own label, as it stands while the model runs: of an operation, `native:softmax_2` for
    the second softmax of the forward (or `native:softmax_2_100` with its running number, which in a finished `trace` is
    another); or of a call of a module, `native:model.layers.3.mlp:1` for what the first call returns. Which operations
    there are, only the forward can tell.
    """

    name: ClassVar[str] = "torchlens"
    library: ClassVar[str | None] = "torchlens"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "nested": Support("upstream", "torchlens runs one forward at a time in a process; inside apply(), use 'hooks'")
    }

    def _open(self) -> None:
        self._shadow = Shadow(self.model)
        self._root = _Root(self._shadow.module)
        first = {module: path for path, module in self._root.model.named_modules()}
        aliases = self._root.model.named_modules(remove_duplicate=False)  # torchlens may prefer another name than ours
        self._paths = {f"model.{path}".rstrip("."): first[module] for path, module in aliases}

    def _release(self) -> None:
        del self._root, self._shadow
        with suppress(CaptureContextError):  # closed in the middle of a forward that still needs the wrappers
            unwrap_torch()

    def _locate(self, site: Site) -> Location:
        if site.kind != "native":
            return super()._locate(site)
        path, _, call = site.address.rpartition(":")
        modules = self.architecture.sites.modules
        if call.isdecimal() and path not in modules:
            raise SiteError(f"site {site.name!r}: torchlens has no module {path!r}; nearest: {_near(path, modules)}")
        if not call.isdecimal() and not _OPERATION.fullmatch(site.address):
            raise SiteError(
                f"site {site.name!r}: write a label such as native:softmax_2, or native:lm_head:1 of a call"
            )
        return Location(site.address)

    def _native_address(self, site: Site, location: Location) -> str:
        path, _, side = super()._native_address(site, location).rpartition(".")
        if side == "input":
            raise SiteError(f"site {site.name!r}: torchlens has no label for the input of a module")
        return f"{path}:1"

    def _forward(self, plan: Plan) -> Any:
        probes = plan.probes()
        self._shadow.sync()
        module = self._shadow.module
        if attention := getattr(getattr(self.model, "config", None), "_attn_implementation", None):
            module.config._attn_implementation = attention
        server = _Server(probes, self._root.tap, self._paths, self._dtype)
        self._root.random = log_current_rng_states()
        with eager_attention(module, server.wants_patterns), _whole(plan), server.routed(module):
            try:
                output, _ = torchlens.record(
                    self._root,
                    [],
                    {"args": plan.args, "kwargs": plan.kwargs},
                    save=lambda at: False,
                    intervene=server if probes else None,
                    return_output=True,
                )
            except torchlens.ReentrantTraceError:
                raise self._refusal("nested") from None
        if server.stopped:
            raise StopForward
        server.check_labels()
        return output


class _Root(nn.Module):
    """What torchlens runs: the model, and beside it the module that inputs are sent through.

    Attributes:
        random: states of the random generators that the model starts with.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.tap = nn.Identity()
        self.random: dict[str, Any] = {}

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        set_rng_from_saved_states(self.random)
        return self.model(*args, **kwargs)


class _Server:
    """Says, at each call of a module and each operation, which function torchlens is to run there, if any.

    Args:
        probes: of one forward.
        tap: the module that inputs are sent through.
        paths: torchlens' address of a module -> its path in the model.
        dtype: of the model.

    Attributes:
        selector: where torchlens asks: without the name of a module in it, at operations only.
        stopped: whether the forward was stopped at `until=`.
    """

    selector = torchlens.module("tap") | torchlens.where(lambda at: True)

    def __init__(self, probes: Iterable[Probe], tap: nn.Module, paths: Mapping[str, str], dtype: torch.dtype) -> None:
        self._at: dict[str, dict[str, Probe]] = {"input": {}, "output": {}, "softmax": {}}
        self._labels: dict[str, Probe] = {}
        for probe in probes:
            if isinstance(probe.key, Point):
                self._at[probe.key.side][probe.key.path] = probe
            else:
                self._labels[str(probe.key)] = probe
        self.wants_patterns = bool(self._at["softmax"])
        self.stopped = False
        self._tap, self._paths, self._dtype = tap, paths, str(dtype)
        self._passing: Any = None  # the whole of what the call that is just ending returns
        self._served: tuple[tuple[str, int], Any] | None = None  # that call, and what the model goes on with
        self._tapping: Probe | None = None
        self._uncast: str | None = None  # the softmax whose result is still to be cast
        self._seen: list[str] = []

    def __call__(self, at: Any) -> Any:
        if isinstance(at, RecordContext):
            found = self._at_operation(at)
        elif at.module[0] == "tap":
            found = [self._tapping]
        else:
            path = self._paths.get(at.module[0], "")
            found = [self._at["output"].get(path), self._labels.get(f"{path}:{at.module[1]}")]
        probes = sorted((p for p in found if p is not None), key=lambda p: not p.edits)  # one place, several names
        if not probes:
            return None
        if isinstance(at, RecordContext):
            return partial(self._change, probes)
        return partial(self._change_leaf, probes, at.module, at.container_path)

    def check_labels(self) -> None:
        """Raise SiteError for a label that the forward, now over, did not come to."""
        for label, probe in self._labels.items():
            if not probe.calls:
                name, near = probe.visits[0].site.name, _near(label, self._seen)
                raise SiteError(f"site {name!r}: torchlens came to no such label in this forward; nearest: {near}")

    def _at_operation(self, at: Any) -> list[Probe | None]:
        """Probes of an operation: Llama's softmax works in float32, and the cast after it makes the pattern."""
        found: list[Probe | None] = []
        if self._labels:
            label = at.raw_label.removesuffix("_raw")
            self._seen.append(label.rpartition("_")[0])
            found = [self._labels.get(self._seen[-1]), self._labels.get(label)]
        if self.wants_patterns and (at.func_name == "softmax" or self._uncast in at.parent_labels):
            probe = self._at["softmax"].get(self._paths.get(at.module_stack[-1].address, ""))
            if at.dtype.name == self._dtype:
                self._uncast = None
                found.append(probe)
            elif probe is not None:
                self._uncast = at.raw_label
        return found

    def _change(self, probes: list[Probe], value: Any, *, hook: Any = None) -> Any:
        visits = [visit for probe in probes for visit in probe.visits if visit.capture]
        if visits and probes[0].plan.grad and hasattr(value, "tl_user_grad_fn"):
            raise UnsupportedError(
                f"gradient at {visits[0].site.name!r}: the operation works in place or hands on what it got; torchlens "
                "shows a copy of that, which no gradient reaches. Name the operation before or after it"
            )
        try:
            for probe in probes:
                value = probe(value)
        except StopForward:
            self.stopped = True
            halt("until")
        return value

    def _change_leaf(
        self, probes: list[Probe], call: tuple[str, int], place: tuple[Any, ...], leaf: Tensor, *, hook: Any
    ) -> Any:
        """One tensor of what a call returns; torchlens shows them one by one, and probes want the whole."""
        if self._served is None or self._served[0] != call:
            self._served = (call, self._change(probes, self._passing))
        new, old = self._served[1], self._passing
        for item in place:
            if new is not old and type(old) not in (list, dict) and not isinstance(old, tuple):
                name, kind = probes[0].visits[0].site.name, "dict" if isinstance(old, dict) else "list"
                raise UnsupportedError(
                    f"edit of {name!r}: the module returns a {type(old).__name__}, and torchlens would put a plain "
                    f"{kind} in its place; edit what the module is computed from, or what is computed from it"
                )
            new, old = new[item], old[item]
        return new

    @contextmanager
    def routed(self, model: nn.Module) -> Iterator[None]:
        """Have the visited modules send their inputs through the tap, and say what they return as a whole."""
        calls = [label.rpartition(":")[0] for label in self._labels if ":" in label]
        routes = [(path, model.get_submodule(path)) for path in {*self._at["input"], *self._at["output"], *calls}]
        before = [vars(module).get("forward") for _, module in routes]
        for path, module in routes:
            module.forward = self._route(module.forward, self._at["input"].get(path))
        try:
            yield
        finally:
            for (_, module), own in zip(routes, before, strict=True):
                if own is None:
                    del module.forward
                else:
                    module.forward = own

    def _route(self, forward: Any, probe: Probe | None) -> Any:
        def tapped(value: Any) -> Any:
            self._tapping, self._passing = probe, value
            return self._tap(value)

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            name = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
            if probe is not None and args:
                args = (tapped(args[0]), *args[1:])
            elif probe is not None and name is not None:
                kwargs[name] = tapped(kwargs[name])
            self._passing = forward(*args, **kwargs)
            return self._passing

        return run


def _near(name: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    return ", ".join(map(repr, difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]))


@contextmanager
def _whole(plan: Plan) -> Iterator[None]:
    """Every submodule runs, and no edit is dropped with a mere warning; torchlens' remarks on its graph concern nobody.

    In its fused path nn.TransformerEncoder calls no module; PyTorch itself leaves it where there are forward hooks.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused and not plan.visits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TorchLens captured a")
        warnings.simplefilter("ignore", ScalarEscapeWarning)
        warnings.simplefilter("ignore", CaptureAttemptFailedWarning)
        warnings.filterwarnings("error", message=_REFUSED)
        try:
            yield
        except UserWarning as warning:
            if not str(warning).startswith(_REFUSED):
                raise
            names = ", ".join(repr(visit.site.name) for visit in plan.visits if visit.site.kind == "native")
            raise UnsupportedError(f"edit of {names}: {warning}") from None
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
