"""Each library used directly, as its own documentation teaches, to record every block's residual stream.

What each gives per call is one owned copy of `resid_post` for each block. Libraries that rewire the model get a shadow
of it that shares the weights, once, outside what is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters.architectures import Architecture, describe
from crosslens.adapters.shadow import Shadow

Capture = Callable[[], list[Tensor]]
"""One forward; gives every block's residual stream in order."""


def blocks_of(architecture: Architecture) -> list[str]:
    """Dotted paths of the blocks."""
    sites = architecture.sites.resolve("blocks.*.resid_post")
    return [architecture.address(site).module for site in sites]


@contextmanager
def hooks_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """PyTorch: forward hooks registered once, as a user would keep them for many calls."""
    kept: list[Tensor] = []
    modules = [model.get_submodule(path) for path in blocks_of(describe(model))]
    handles = [m.register_forward_hook(lambda m, i, out: kept.append(out.clone())) for m in modules]

    def call() -> list[Tensor]:
        kept.clear()
        with torch.no_grad():
            model(ids, use_cache=False)
        return list(kept)

    try:
        yield call
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def transformer_lens_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """TransformerLens: `run_with_hooks`, as its documentation teaches; on a shadow, since wrapping cannot be undone."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shadow = Shadow(model).module
    bridge = build_bridge_from_module(
        shadow, type(shadow).__name__, hf_config=shadow.config, dtype=next(model.parameters()).dtype
    )
    kept: list[Tensor] = []
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(len(blocks_of(describe(model))))]
    hooks = [(name, lambda act, hook: kept.append(act.clone())) for name in names]

    def call() -> list[Tensor]:
        kept.clear()
        with torch.no_grad():
            bridge.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False)
        return list(kept)

    yield call


@contextmanager
def nnsight_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """nnsight: one `trace` whose body reads the blocks in order of execution."""
    from nnsight import NNsight

    wrapped = NNsight(Shadow(model).module)
    envoys = [wrapped.get(path) for path in blocks_of(describe(model))]

    def call() -> list[Tensor]:
        kept: list[Tensor] = []
        with torch.no_grad(), wrapped.trace(ids, use_cache=False):
            for envoy in envoys:
                kept.append(envoy.output.clone())
        return kept

    yield call


@contextmanager
def pyvene_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """pyvene: one `IntervenableModel` with a `CollectIntervention` at each block."""
    import pyvene

    shadow = Shadow(model).module
    shadow.requires_grad_(False)  # as pyvene leaves it
    sites = [
        {"component": f"{path}.output", "intervention": pyvene.CollectIntervention(keep_last_dim=True)}
        for path in blocks_of(describe(model))
    ]
    intervenable = pyvene.IntervenableModel(sites, shadow)

    def call() -> list[Tensor]:
        with torch.no_grad():
            (_, collected), _ = intervenable({"input_ids": ids, "use_cache": False})
        return [tensor.reshape(*ids.shape, -1) for tensor in collected]

    yield call


@contextmanager
def tdhook_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """tdhook: a `HookSession` with a capture of every unit at each block."""
    from tdhook.session import HookSession
    from tdhook.targets import Target

    units = tuple(range(model.config.hidden_size))
    targets = [Target(path, "activation", -1, units) for path in blocks_of(describe(model))]

    def call() -> list[Tensor]:
        with HookSession(model) as session, torch.no_grad():
            captured = [session.capture(target) for target in targets]
            model(ids, use_cache=False)
        return [each.values[0] for each in captured]

    yield call


@contextmanager
def torchlens_directly(model: Any, ids: Tensor) -> Iterator[Capture]:
    """torchlens: `record`, its light path, with a selector of all blocks."""
    import torchlens
    from torchlens.backends.torch.wrappers import unwrap_torch

    shadow = Shadow(model).module
    paths = blocks_of(describe(model))
    selector = torchlens.module(paths[0])
    for path in paths[1:]:
        selector = selector | torchlens.module(path)

    def call() -> list[Tensor]:
        with torch.no_grad():
            _, recorded = torchlens.record(shadow, ids, {"use_cache": False}, save=selector, return_output=True)
        found = {each.ctx.address: each.ram_payload for each in recorded}
        return [found[path] for path in paths]

    try:
        with warnings.catch_warnings():  # its remarks on the graph that it sees
            warnings.filterwarnings("ignore", message="TorchLens observed")
            yield call
    finally:
        unwrap_torch()


DIRECTLY: dict[str, Callable[[Any, Tensor], Any]] = {
    "hooks": hooks_directly,
    "transformer_lens": transformer_lens_directly,
    "nnsight": nnsight_directly,
    "pyvene": pyvene_directly,
    "tdhook": tdhook_directly,
    "torchlens": torchlens_directly,
}
