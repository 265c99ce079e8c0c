"""pyvene: an IntervenableModel on the caller's own model, with one intervention at each site.

pyvene finds the modules, hooks them, runs the model and hands what passes there to a function, one for each component;
that function is the probe. As pyvene is written, a run also freezes the model's parameters, puts it in eval mode,
removes every hook on it, writes edits into the tensors that it finds and refuses a module that runs twice.
`_Interventions` overrides the methods that do so; nothing needs undoing afterwards, and hooks of the caller's fire.

`native:COMPONENT` is a pyvene component given by its path, `native:model.layers[3].mlp.output`; as in pyvene it stands
for the first tensor of a tuple. `attn.pattern` is read from the output of the eager attention module, so while a model
trains with dropout it is the pattern after dropout.

Importing pyvene imports nnsight where that is installed, for a backend of pyvene's that is not used here, and nnsight
changes the process (see `nnsight.py`). It is kept from doing so, unless one of the two is imported already: a program
that wants pyvene's nnsight backend imports pyvene itself before it opens this one.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .attention import begin_graph, eager_attention, visit_returned
from .capabilities import Support
from .errors import SiteError
from .inspector import Inspector
from .plan import Location, Plan, Point, Probe
from .sites import Site


@contextmanager
def _without_nnsight() -> Iterator[None]:
    """Let pyvene find no nnsight, which it then reports on standard output."""
    if "pyvene" in sys.modules or "nnsight" in sys.modules:
        yield
        return
    sys.modules["nnsight"] = None  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        del sys.modules["nnsight"]


with _without_nnsight():
    import pyvene
    from pyvene.models.modeling_utils import getattr_for_torch_module

Visitor = Callable[[Any], Any]
"""Called with what passes through a component; returns what goes on in its place, or the same object."""

_KEPT = 64
"""Sets of components whose IntervenableModel is kept for the next forward; making one takes 0.5 ms and more."""


class PyveneInspector(Inspector):
    """pyvene on the caller's own model, which it is kept from changing."""

    name: ClassVar[str] = "pyvene"
    library: ClassVar[str | None] = "pyvene"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "edit.pattern": Support(
            "upstream",
            "pyvene reads and writes what goes in and out of modules; attention after softmax is made and used inside "
            "one, and comes out of it, where it can be read, when an edit is too late",
            "https://github.com/stanfordnlp/pyvene/issues/200",
        ),
        "attribute": Support("upstream", "pyvene has interventions and their training, and no methods of attribution"),
    }

    def _open(self) -> None:
        self._root = _Root(self.model)
        self._ready: OrderedDict[tuple[str, ...], _Interventions] = OrderedDict()

    def _release(self) -> None:
        self._ready.clear()
        del self._root

    def _locate(self, site: Site) -> Location:
        if site.kind != "native":
            return super()._locate(site)
        path, _, side = site.address.rpartition(".")
        if side not in ("input", "output"):
            raise SiteError(
                f"site {site.name!r}: a pyvene component here is a path that ends in .input or .output, such as "
                "native:lm_head.output"
            )
        try:
            found = getattr_for_torch_module(self._root, f"net.{path}".removesuffix("."))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            found = None
        if not isinstance(found, nn.Module):
            names = [name for name, _ in self.model.named_modules() if name]
            near = difflib.get_close_matches(path, names, n=3, cutoff=0.4) or names[:3]
            shown = ", ".join(f"'native:{name}.{side}'" for name in near)
            raise SiteError(f"site {site.name!r}: pyvene finds no module at {path!r}; nearest: {shown}")
        return Location(site.address)

    def _forward(self, plan: Plan) -> Any:
        # a native name may mean the tensor of a site: what only reads there comes after what edits it
        probes = sorted(plan.probes(), key=lambda probe: isinstance(probe.key, str) and not probe.edits)
        pairs = [pair for probe in probes for pair in _visitors(probe, plan.grad)]
        components = tuple(component for component, _ in pairs)
        # taken out while it runs: an edit's function may start another forward of the same sites
        model = self._ready.pop(components, None)
        if model is None:
            model = _Interventions(components, self._root)
        try:
            with eager_attention(self.model, plan.needs(lambda site: site.local == "attn.pattern")):
                return model.run([visitor for _, visitor in pairs], plan)
        finally:  # also where `until` ended the forward
            self._ready[components] = model
            if len(self._ready) > _KEPT:
                self._ready.popitem(last=False)


class _Root(nn.Module):
    """The model as pyvene gets it: under a name, so that the root has a path too, and called with any arguments."""

    config = None  # pyvene asks for one

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, rows: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`rows` is there for pyvene, which takes the batch size from the first of its inputs."""
        return self.net(*args, **kwargs)


class _Interventions(pyvene.IntervenableModel):  # type: ignore[misc]
    """pyvene with a function at each component, and without what it does to the model.

    Args:
        components: pyvene's paths, below the root; one may occur several times.
        root: the model.
    """

    def __init__(self, components: Sequence[str], root: _Root) -> None:
        self.visitors: list[Visitor] = []
        self._handles: list[Any] = []
        self._passing = _Passing()
        sites = [{"component": name, "intervention": self._function(i)} for i, name in enumerate(components)]
        super().__init__(sites, root)
        hooks: dict[str, Any] = vars(self)["intervention_hooks"]
        hooks.update({key: partial(self._attach, register) for key, register in hooks.items()})

    def run(self, visitors: list[Visitor], plan: Plan) -> Any:
        """One forward of the plan; a visitor for each component, in the same order."""
        self.visitors = visitors
        base = {"rows": torch.empty(plan.geometry.batch), "args": plan.args, "kwargs": plan.kwargs}
        try:
            original, intervened = self(base)
        finally:
            self.visitors = []
            self._remove_forward_hooks()
        return intervened if visitors else original  # pyvene turns the two round where it has nothing to do

    def _function(self, index: int) -> Callable[[Any, Any], Any]:
        """A function as pyvene takes it: what it finds, and a source that is not used -> None for no change."""

        def visit(base: Any, source: Any) -> Any:
            new = self.visitors[index](base)
            return None if new is base else new

        return visit

    def _attach(self, register: Any, callback: Any, *, with_kwargs: bool) -> Any:
        """Register pyvene's callback so that it is shown one value, and that what it changed goes on."""

        def on_output(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            new = self._pass(callback, output)
            return None if new is output else new

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = self._pass(callback, args[0])
                return None if new is args[0] else ((new, *args[1:]), kwargs)
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            new = self._pass(callback, kwargs[name])
            return None if new is kwargs[name] else (args, {**kwargs, name: new})

        hook = on_input if register.__name__ == "register_forward_pre_hook" else on_output
        self._handles.append(register(hook, with_kwargs=with_kwargs))
        return self._handles[-1]

    def _pass(self, callback: Any, value: Any) -> Any:
        passing = self._passing
        if passing.busy:  # another forward of this model, inside the function of an edit: it is none of this run
            return value
        passing.value, passing.busy = value, True
        try:
            callback(None, (value,), {}, value)
            return passing.value
        finally:
            passing.value, passing.busy = None, False

    # ---- pyvene's own methods, without what they do to the model

    def _gather_intervention_output(self, output: Any, key: str, unit_locations: Any) -> Any:
        """All of it: pyvene would copy the first tensor, and lose the rest and the place in the graph."""
        return self._passing.value

    def _scatter_intervention_output(self, output: Any, new: Any, key: str, unit_locations: Any) -> None:
        """Pass the new value on: pyvene would write into the tensor, which others may hold or autograd need."""
        self._passing.value = new

    def _output_validation(self) -> None:
        """A module may run several times in a forward; the probes count."""

    def _remove_forward_hooks(self) -> None:
        """Only those that were put here."""
        while self._handles:
            self._handles.pop().remove()

    def disable_model_gradients(self) -> None:
        """Parameters and modes are the caller's."""


class _Passing:
    """What is shown to pyvene at this moment; kept in no attribute of a module, where a parameter is registered."""

    value: Any = None
    busy = False


def _visitors(probe: Probe, grad: bool) -> list[tuple[str, Visitor]]:
    """pyvene's components for one probe, and what visits them."""
    if isinstance(probe.key, str):
        return [(f"net.{probe.key}", partial(_first, probe))]
    assert isinstance(probe.key, Point)
    path = f"net.{probe.key.path}".removesuffix(".")
    if probe.key.side != "softmax":
        return [(f"{path}.{probe.key.side}", probe)]
    pattern = (f"{path}.output", partial(visit_returned, probe))
    return [(f"{path}.input", begin_graph), pattern] if grad else [pattern]


def _first(probe: Probe, value: Any) -> Any:
    """A component by pyvene's own path is the first tensor of a tuple."""
    if not isinstance(value, tuple):
        return probe(value)
    new = probe(value[0])
    return value if new is value[0] else (new, *value[1:])
