"""nnsight: interventions that run in step with the model, through nnsight's own interleaver.

Instead of a `with model.trace(...)` block, whose source nnsight has to find and read, each forward gets
nnsight's `Mediator`s directly, each running a plain function: sites are a list made at run time, in any order,
from a script, a notebook or standard input alike. Mediators are no public interface of nnsight, hence the
pinned minor version.

nnsight rewires every module for good, so it gets a `Shadow`: the caller's model is never wrapped, and two
inspectors on one model have nothing in common but the weights. As always with nnsight, an output is seen before
the forward hooks that the caller has put on that module, and an input after the pre-hooks.

Importing nnsight changes the process: every object gets a `.save` method; `torch.Tensor.backward` is replaced,
and then reads the source of whoever calls it; and on x86-64 Linux glibc's `backtrace()` is overwritten in memory
to return no frames. The first two are taken back below, unless somebody else imported nnsight before and may
count on them: a program that itself writes `value.save()` imports nnsight before it opens this backend, or
writes `nnsight.save(value)`. The third stays: without it a shape error inside an edit could crash the
interpreter, and all that it costs is the C++ part of PyTorch's tracebacks.
"""

from __future__ import annotations

import contextvars
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .attention import eager_attention
from .errors import SiteError, UnsupportedError
from .inspector import Inspector
from .plan import Location, Plan, Probe
from .shadow import Shadow
from .sites import Site

_IMPORTED_BEFORE = "nnsight" in sys.modules
_BACKWARD = torch.Tensor.backward

import nnsight  # noqa: E402  the two lines above must see the process as it was
from nnsight._c import unmount  # noqa: E402
from nnsight.intervention.interleaver import Mediator, OutOfOrderError  # noqa: E402
from nnsight.intervention.iterator import Iterations  # noqa: E402
from nnsight.intervention.source import SourceNotAvailable  # noqa: E402

if not _IMPORTED_BEFORE:
    torch.Tensor.backward = _BACKWARD  # type: ignore[method-assign]
    if "save" in vars(object):  # the user's configuration of nnsight may have left it out
        unmount("save")

_CODE = compile("visit()", "<crosslens probe>", "exec")
_NAMES_OF_NNSIGHT = ("path", "interleaver", "interleave")  # those that a submodule of that name would break


class NNsightInspector(Inspector):
    """nnsight on a weight-sharing shadow of the caller's model.

    `native:ADDRESS` is nnsight's own path, from below the model to a value: `native:model.layers.3.mlp.output`, or an
    operation in a forward, `native:model.layers.3.self_attn.source.attention_interface_1.output`. Modules and the
    first operation are checked before the model runs; operations of a called function are known only then.
    """

    name: ClassVar[str] = "nnsight"
    library: ClassVar[str | None] = "nnsight"

    def _open(self) -> None:
        self._plain = _Wrapped(self.model)

    @cached_property
    def _sourced(self) -> _Wrapped:
        # A module whose `.source` was asked for is slower ever after (a fifth, on a tiny GPT-2): not in plain runs
        return _Wrapped(self.model)

    def _release(self) -> None:
        del self._plain
        vars(self).pop("_sourced", None)

    def _locate(self, site: Site) -> Location:
        if site.kind == "native":
            return Location(self._native(site))
        location = super()._locate(site)
        key: Any = location.key
        if key[1] == "softmax":  # asked now: a forward that has begun is too late for its own operations
            _attention_call(self._sourced.envoys[key[0]])
        return location

    def _native(self, site: Site) -> tuple[str, ...]:
        """Key of a native address: (module path, side, operations from the outermost in)."""
        path, _, side = site.address.rpartition(".")
        path, *operations = f".{path}".split(".source.")
        path = path.removeprefix(".")
        if side not in ("input", "output"):
            raise SiteError(
                f"site {site.name!r}: an nnsight address ends in .input or .output, such as native:lm_head.output"
            )
        path = self._plain.path_of(path, site)
        if operations:
            _operation(self._sourced.envoys[path], operations[0], site)
        return (path, side, *operations)

    # ---- one forward

    def _forward(self, plan: Plan) -> Any:
        probes = plan.probes()
        keys: list[Any] = [probe.key for probe in probes]
        softmax = any(key[1] == "softmax" for key in keys)
        wrapped = self._sourced if softmax or any(len(key) > 2 for key in keys) else self._plain
        interleaver = wrapped.env.interleaver
        module = wrapped.sync(self.model)
        interleaver.mediators = [
            Mediator(_CODE, {}, {"visit": visit}) for visit in _visitors(probes, wrapped, self._dtype)
        ]
        try:
            with eager_attention(module, softmax), _every_submodule_runs(bool(probes)):
                return wrapped.env.interleave(partial(module, *plan.args, **plan.kwargs))
        finally:
            interleaver.cancel()


class _Wrapped:
    """A shadow of the model with nnsight on it.

    Attributes:
        env: nnsight's root envoy.
        envoys: path of each module, as PyTorch names it -> its envoy.
    """

    def __init__(self, model: nn.Module) -> None:
        for name, _ in model.named_modules():
            if (last := name.rpartition(".")[2]) in _NAMES_OF_NNSIGHT:
                raise UnsupportedError(
                    f"nnsight cannot wrap this model: its submodule {name!r} hides nnsight's own attribute {last!r}"
                )
        self._shadow = Shadow(model)
        with warnings.catch_warnings():  # nnsight renames a submodule `output` to `E_output`; sites do not care
            warnings.filterwarnings("ignore", message=".* has a submodule named ", category=UserWarning)
            self.env: Any = nnsight.NNsight(self._shadow.module)
        self.envoys: dict[str, Any] = {_below_root(envoy): envoy for envoy in self.env.modules()}

    def sync(self, model: Any) -> Any:
        """The shadow module, with what the caller may have changed since."""
        self._shadow.sync()
        module = self._shadow.module
        if hasattr(model, "config") and hasattr(model.config, "_attn_implementation"):
            wanted = model.config._attn_implementation
            if module.config._attn_implementation != wanted:
                module.config._attn_implementation = wanted
        return module

    def path_of(self, address: str, site: Site) -> str:
        """PyTorch's path of the module that nnsight finds at `address`; the root is empty."""
        try:
            envoy = self.env.get(address) if address else self.env
        except (AttributeError, ValueError):
            envoy = None
        if not isinstance(envoy, nnsight.Envoy):
            near = _near(address, self.envoys)
            raise SiteError(f"site {site.name!r}: nnsight has no module {address!r}; nearest: {near}")
        return _below_root(envoy)


def _visitors(probes: Iterable[Probe], wrapped: _Wrapped, dtype: torch.dtype) -> Iterator[Callable[[], None]]:
    """What the mediators run: one goes through the vocabulary's sites in their order, one stands at each other.

    A mediator per site would do for all of them, but each costs time at every site that is served.
    """
    context = contextvars.copy_context()  # a greenlet starts with an empty one, and edits are the caller's code

    def visit(probe: Probe) -> bool:
        try:
            raw, put = _wait(probe, wrapped.envoys, dtype)
        except OutOfOrderError:  # thrown in when the forward has ended; `Plan.reached` says what it did not come to
            return False
        new = context.run(probe, raw)
        if new is not raw:
            put(new)
        return True

    def at_each_call(probe: Probe) -> None:
        for _ in Iterations()[:]:
            if not visit(probe):
                return

    def in_turn(ordered: list[Probe]) -> None:
        for probe in ordered:
            if not visit(probe):
                return

    ordered = []
    for probe in probes:
        if all(v.site.order >= 0 for v in probe.visits):
            ordered.append(probe)
        else:
            yield partial(at_each_call, probe)
    if ordered:
        yield partial(in_turn, ordered)


def _wait(probe: Probe, envoys: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Callable[[Any], None]]:
    """Park in nnsight until the model is at the probe: what passes there, and how to put another in its place."""
    key: Any = probe.key
    path, side, *operations = key
    node, site = envoys[path], probe.visits[0].site
    if side == "softmax":
        node = _matching(_attention_call(node).source, r"(\w+_)?softmax_\d+")
        raw = node.output
        if raw.dtype != dtype:  # Llama's softmax works in float32 and casts back: the site is the pattern after that
            raw = node.output = raw.to(dtype)
        return raw, partial(setattr, node, "output")
    for operation in operations:
        node = _operation(node, operation, site)
    if side == "output":
        return node.output, partial(setattr, node, "output")
    args, kwargs = node.inputs
    if args:
        return args[0], lambda new: setattr(node, "inputs", ((new, *args[1:]), kwargs))
    name = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
    if name is None:
        raise SiteError(f"site {site.name!r}: the call has no tensor among its arguments")
    return kwargs[name], lambda new: setattr(node, "inputs", (args, {**kwargs, name: new}))


def _attention_call(attention: Any) -> Any:
    """The operation of an attention module's forward that calls the attention function.

    Raises:
        UnsupportedError: the source of the forward has none.
    """
    return _matching(attention.source, r"attention_interface_\d+")


def _matching(source: Any, pattern: str) -> Any:
    """The last operation whose label matches: the first `attention_interface` is an assignment."""
    found = [name for name in source.names if re.fullmatch(pattern, name)]
    if not found:
        raise UnsupportedError(
            f"attention after softmax: {source.prefix} has no operation like {pattern}, only "
            f"{', '.join(source.names)}; this backend does not know the attention code of this transformers version"
        )
    return getattr(source, found[-1])


def _operation(node: Any, name: str, site: Site) -> Any:
    """Operation `name` in the source of a module, or of the function that an operation calls."""
    try:
        source = node.source
    except SourceNotAvailable as error:
        raise SiteError(f"site {site.name!r}: nnsight cannot open {node.path}.source: {error}") from None
    if name not in source.names:
        near = _near(name, source.names)
        raise SiteError(f"site {site.name!r}: {source.prefix} has no operation {name!r}; nearest: {near}")
    return getattr(source, name)


def _below_root(envoy: Any) -> str:
    path: str = envoy.path  # nnsight calls the root `model`, whatever is below it
    return path.partition(".")[2]


def _near(name: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    return ", ".join(map(repr, difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]))


@contextmanager
def _every_submodule_runs(wanted: bool) -> Iterator[None]:
    """Without the fused path of nn.TransformerEncoder; PyTorch itself leaves it where there are forward hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(before and not wanted)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
