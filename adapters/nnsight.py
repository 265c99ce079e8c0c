"""nnsight: interventions that run in step with the model, through nnsight's own interleaver.

Instead of a `with model.trace(...)` block, whose source nnsight has to find and read, each forward gets nnsight's
`Mediator`s directly, each running a plain function: sites are a list made at run time, in any order, from a script, a
notebook or standard input alike. Mediators are no public interface of nnsight, hence the pinned minor version.

nnsight rewires every module for good, so it gets a `Shadow`: the caller's model is never wrapped, and two inspectors
on one model have nothing in common but the weights. As always with nnsight, an output is seen before the forward hooks
that the caller has put on that module, and an input after the pre-hooks.

Importing nnsight changes the process: every object gets a `.save` method; `torch.Tensor.backward` is replaced, and then
reads the source of whoever calls it; and glibc's `backtrace()` is overwritten in memory, on x86-64 Linux, to return no
frames. The first two are taken back below, unless nnsight was imported before by someone who may count on them: a
program that itself writes `value.save()` imports nnsight before it opens this backend, or writes `nnsight.save(value)`.
The third stays: without it a shape error inside an edit would crash the interpreter, and all that it costs is the C++
part of PyTorch's tracebacks.
"""

from __future__ import annotations

import contextvars
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .attention import eager_attention
from .errors import SiteError, UnsupportedError
from .inspector import Inspector
from .plan import Location, Plan, Probe
from .shadow import Shadow
from .sites import Site

_ALREADY_IMPORTED = "nnsight" in sys.modules
_BACKWARD = torch.Tensor.backward

import nnsight  # noqa: E402
from nnsight import _c as nnsight_c  # noqa: E402
from nnsight.intervention.interleaver import Mediator, OutOfOrderError  # noqa: E402
from nnsight.intervention.iterator import Iterations  # noqa: E402
from nnsight.intervention.source import SourceNotAvailable  # noqa: E402

if not _ALREADY_IMPORTED:
    torch.Tensor.backward = _BACKWARD  # type: ignore[method-assign]
    if "save" in vars(object):  # nnsight's own configuration may have left it out
        nnsight_c.unmount("save")

_CODE = compile("visit()", "<crosslens nnsight probe>", "exec")
_ATTENTION_CALLS = {False: r"attention_interface_\d+", True: r"\w*upcast_and_reordered_attn_\d+"}

Put = Callable[[Any], None]


class NNsightInspector(Inspector):
    """nnsight on a weight-sharing shadow of the caller's model.

    `native:ADDRESS` is nnsight's own path, from the model down to a value: `native:model.layers.3.mlp.output`, or an
    operation inside a forward, `native:model.layers.3.self_attn.source.attention_interface_1.output`. The modules and
    the first operation are checked before the model runs; operations inside a called function exist only while it runs.
    """

    name: ClassVar[str] = "nnsight"
    library: ClassVar[str | None] = "nnsight"

    def _open(self) -> None:
        self._shadow = Shadow(self.model)
        with warnings.catch_warnings():  # a submodule named `output` is `E_output` as an attribute; module: sites keep theirs
            warnings.filterwarnings("ignore", message=".* has a submodule named ", category=UserWarning)
            self._env: Any = nnsight.NNsight(self._shadow.module)
        self._envoys = {_relative(envoy): envoy for envoy in self._env.modules()}

    def _release(self) -> None:
        del self._env, self._envoys, self._shadow

    def _locate(self, site: Site) -> Location:
        if site.kind == "native":
            return Location(self._native(site))
        location = super()._locate(site)
        path, side = location.key  # type: ignore[misc]  # the base class makes (path, side) pairs
        if side == "softmax":
            self._attention_call(path)
        return location

    def _native(self, site: Site) -> tuple[str, ...]:
        """Key of a native address: (module path, side, operations from the outermost in)."""
        path, _, side = site.address.rpartition(".")
        path, *operations = f".{path}".split(".source.")
        path = path.removeprefix(".")
        if side not in ("input", "output"):
            raise SiteError(
                f"site {site.name!r}: an nnsight address ends in .input or .output, as in native:lm_head.output or "
                "native:lm_head.source.F_linear_0.output"
            )
        try:
            envoy = self._env.get(path) if path else self._env
        except (AttributeError, ValueError):
            envoy = None
        if not isinstance(envoy, nnsight.Envoy):
            raise SiteError(f"site {site.name!r}: nnsight has no module {path!r}; nearest: {_near(path, self._envoys)}")
        if operations:
            _operation(envoy, operations[0])
        return (_relative(envoy), side, *operations)

    # ---- one forward

    def _forward(self, plan: Plan) -> Any:
        interleaver = self._env.interleaver
        if interleaver.interleaving:
            raise UnsupportedError(
                "this inspector is in the middle of a forward, and nnsight cannot start another inside it; a function "
                "given to apply() may use a second inspector, open_inspector('nnsight', model)"
            )
        self._shadow.sync()
        module = self._shadow.module
        config = getattr(self.model, "config", None)
        if (wanted := getattr(config, "_attn_implementation", None)) != getattr(
            getattr(module, "config", None), "_attn_implementation", None
        ):
            module.config._attn_implementation = wanted
        probes = plan.probes()
        softmax = any(probe.key[1] == "softmax" for probe in probes)  # type: ignore[index]
        interleaver.mediators = [Mediator(_CODE, {}, {"visit": visit}) for visit in self._visitors(probes)]
        try:
            with eager_attention(module, softmax), _every_child_runs(bool(probes)):
                return self._env.interleave(partial(module, *plan.args, **plan.kwargs))
        finally:
            interleaver.cancel()

    def _visitors(self, probes: Iterable[Probe]) -> Iterator[Callable[[], None]]:
        """What the mediators run: one for all sites whose order is known, one for each other probe.

        Every mediator costs time at every site, so the sites of the vocabulary share one that goes from one to the next.
        """
        context = contextvars.copy_context()  # a greenlet starts with an empty one, and an edit is the caller's code

        def visit(probe: Probe) -> bool:
            try:
                raw, put = self._wait(probe)
            except OutOfOrderError:  # nnsight's way to say that the forward has ended
                if probe.calls:
                    return False
                raise SiteError(
                    f"site {probe.visits[0].site.name!r} did not run in this forward: its module was not called"
                ) from None
            new = context.run(probe, raw)
            if new is not raw:
                put(new)
            return True

        def at_every_call(probe: Probe) -> None:
            for _ in Iterations()[:]:
                if not visit(probe):
                    break

        def one_by_one(probes: Iterable[Probe]) -> None:
            for probe in probes:
                visit(probe)

        ordered = []
        for probe in probes:
            if all(v.site.order >= 0 for v in probe.visits):
                ordered.append(probe)
            else:
                yield partial(at_every_call, probe)
        if ordered:
            yield partial(one_by_one, ordered)

    def _wait(self, probe: Probe) -> tuple[Any, Put]:
        """Wait in nnsight for the model to get there: what passes there, and how to put another in its place."""
        path, side, *operations = probe.key  # type: ignore[misc]  # _locate makes tuples
        node = self._envoys[path]
        if side == "softmax":
            node = self._softmax(path)
            # Llama's softmax works in float32 and casts back: the site is the pattern in the model's dtype
            return node.output.to(self._dtype), partial(setattr, node, "output")
        for operation in operations:
            node = _operation(node, operation)
        if side == "output":
            return node.output, partial(setattr, node, "output")
        args, kwargs = node.inputs
        if args:
            return args[0], lambda new: setattr(node, "inputs", ((new, *args[1:]), kwargs))
        key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        if key is None:
            raise SiteError(f"site {probe.visits[0].site.name!r}: the module was called without a tensor")
        return kwargs[key], lambda new: setattr(node, "inputs", (args, {**kwargs, key: new}))

    # ---- attention after softmax

    def _attention_call(self, path: str) -> Any:
        """The operation of an attention module's forward that calls the attention function.

        Raises:
            UnsupportedError: the forward has none; its source differs from those that this backend knows.
        """
        reordered = getattr(self._shadow.module.get_submodule(path), "reorder_and_upcast_attn", False)
        return _last(self._envoys[path].source, _ATTENTION_CALLS[bool(reordered)], path)

    def _softmax(self, path: str) -> Any:
        return _last(self._attention_call(path).source, r"(\w+_)?softmax_\d+", path)


def _relative(envoy: Any) -> str:
    """Path of an envoy below the root, which nnsight calls `model`."""
    path: str = envoy.path
    return path.partition(".")[2]


def _operation(node: Any, name: str) -> Any:
    """Operation `name` in the source of a module or of a called function.

    Raises:
        SiteError: no such operation, or no source.
    """
    try:
        source = node.source
    except SourceNotAvailable as error:
        raise SiteError(f"native address: {node.path}.source cannot be opened: {error}") from None
    if name not in source.names:
        raise SiteError(f"native address: {node.path}.source has no {name!r}; nearest: {_near(name, source.names)}")
    return getattr(source, name)


def _last(source: Any, pattern: str, path: str) -> Any:
    found = [name for name in source.names if re.fullmatch(pattern, name)]
    if not found:
        raise UnsupportedError(
            f"attention after softmax: no operation like {pattern!r} in {source.prefix} (module {path!r}), only "
            f"{', '.join(source.names)}; the attention code of this transformers version is not known to this backend"
        )
    return getattr(source, found[-1])


def _near(name: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return ", ".join(map(repr, close))


@contextmanager
def _every_child_runs(wanted: bool) -> Iterator[None]:
    """Without the fused path of nn.TransformerEncoder, which runs no submodule; PyTorch skips it by itself for hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and not wanted)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
