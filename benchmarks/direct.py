"""Each library used directly, as its own documentation teaches, to record the residual stream behind some blocks.

What each gives per call is one owned copy of `resid_post` for each of them, in order. What rewires the model or leaves
hooks on it gets a shadow of it that shares the weights, once, outside what is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters.architectures import Architecture, describe
from crosslens.adapters.shadow import Shadow

Layers = Sequence[int] | None
"""Numbers of blocks, ascending; None for all."""
Capture = Callable[[], list[Tensor]]
"""One forward; gives the residual stream of the blocks in order."""


def blocks_of(architecture: Architecture, layers: Layers = None) -> list[str]:
    """Dotted paths of the blocks, or of some."""
    sites = architecture.sites.resolve("blocks.*.resid_post")
    return [architecture.address(site).module for site in sites if layers is None or site.layer in layers]


@contextmanager
def hooks_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """PyTorch: forward hooks registered once, as a user would keep them for many calls; on a shadow, for no other call
    to run them."""
    kept: list[Tensor] = []
    shadow = Shadow(model).module
    for path in blocks_of(describe(model), layers):
        shadow.get_submodule(path).register_forward_hook(lambda m, i, out: kept.append(out.clone()))

    def call() -> list[Tensor]:
        kept.clear()
        with torch.no_grad():
            shadow(ids, use_cache=False)
        return list(kept)

    yield call


@contextmanager
def transformer_lens_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """TransformerLens: `run_with_hooks`, as its documentation teaches; on a shadow, since wrapping cannot be undone."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shadow = Shadow(model).module
    bridge = build_bridge_from_module(
        shadow, type(shadow).__name__, hf_config=shadow.config, dtype=next(model.parameters()).dtype
    )
    kept: list[Tensor] = []
    every = range(len(blocks_of(describe(model))))
    names = [f"blocks.{layer}.hook_resid_post" for layer in every if layers is None or layer in layers]
    hooks = [(name, lambda act, hook: kept.append(act.clone())) for name in names]

    def call() -> list[Tensor]:
        kept.clear()
        with torch.no_grad():
            bridge.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False)
        return list(kept)

    yield call


@contextmanager
def nnsight_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """nnsight: one `trace` whose body reads the blocks in order of execution."""
    from nnsight import NNsight

    wrapped = NNsight(Shadow(model).module)
    envoys = [wrapped.get(path) for path in blocks_of(describe(model), layers)]

    def call() -> list[Tensor]:
        kept: list[Tensor] = []
        with torch.no_grad(), wrapped.trace(ids, use_cache=False):
            for envoy in envoys:
                kept.append(envoy.output.clone())
        return kept

    yield call


@contextmanager
def pyvene_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """pyvene: one `IntervenableModel` with a `CollectIntervention` at each block."""
    import pyvene

    shadow = Shadow(model).module
    shadow.requires_grad_(False)  # as pyvene leaves it
    sites = [
        {"component": f"{path}.output", "intervention": pyvene.CollectIntervention(keep_last_dim=True)}
        for path in blocks_of(describe(model), layers)
    ]
    intervenable = pyvene.IntervenableModel(sites, shadow)

    def call() -> list[Tensor]:
        with torch.no_grad():
            (_, collected), _ = intervenable({"input_ids": ids, "use_cache": False})
        return [tensor.reshape(*ids.shape, -1) for tensor in collected]

    yield call


@contextmanager
def tdhook_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """tdhook: a `HookSession` with a capture of every unit at each block."""
    from tdhook.session import HookSession
    from tdhook.targets import Target

    units = tuple(range(model.config.hidden_size))
    targets = [Target(path, "activation", -1, units) for path in blocks_of(describe(model), layers)]

    def call() -> list[Tensor]:
        with HookSession(model) as session, torch.no_grad():
            captured = [session.capture(target) for target in targets]
            model(ids, use_cache=False)
        return [each.values[0] for each in captured]

    yield call


@contextmanager
def torchlens_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """torchlens: `record`, its light path, with a selector of all blocks."""
    import torchlens
    from torchlens.backends.torch.wrappers import unwrap_torch

    shadow = Shadow(model).module
    paths = blocks_of(describe(model), layers)
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


@contextmanager
def penzai_directly(model: Any, ids: Tensor, layers: Layers = None) -> Iterator[Capture]:
    """penzai: a `SaveIntermediate` behind each block, put in inside one function compiled by `jax.jit`.

    The model is crosslens' conversion: penzai's own, `llama_from_huggingface_model`, refuses configs of transformers 5.
    """
    import jax
    import jax.numpy as jnp
    from penzai import pz
    from penzai.models.transformer.model_parts import TransformerBlock
    from penzai.toolshed.save_intermediates import SaveIntermediate

    from crosslens.adapters.penzai_convert import convert, precision, to_torch

    def saving(layer: int, block: Any) -> Any:
        if layers is not None and layer not in layers:
            return block
        return pz.nn.Sequential([block, SaveIntermediate(pz.StateVariable(None, label=("resid_post", layer)))])

    def forward(network: Any, tokens: Any) -> tuple[Any, list[Any]]:
        network = pz.select(network).at_instances_of(TransformerBlock).apply_with_selected_index(saving)
        logits = network(tokens, rotary_positions=pz.nx.arange("seq", tokens.named_shape["seq"]))
        states = sorted(pz.unbind_state_vars(network)[1], key=lambda state: state.label)
        return logits, [state.value.unwrap("batch", "seq", "embedding") for state in states]

    run, family = jax.jit(forward), describe(model).family
    converted = convert(model, family.name if family else "")

    def call() -> list[Tensor]:
        with precision(model.dtype):
            tokens = pz.nx.wrap(jnp.asarray(ids.int().numpy())).tag("batch", "seq")
            logits, found = run(converted, tokens)  # logits are asked for: JAX leaves out what nobody wants
            jax.block_until_ready(logits)
            return [to_torch(array, ids.device) for array in found]

    yield call


DIRECTLY: dict[str, Callable[..., Any]] = {
    "hooks": hooks_directly,
    "transformer_lens": transformer_lens_directly,
    "nnsight": nnsight_directly,
    "pyvene": pyvene_directly,
    "tdhook": tdhook_directly,
    "torchlens": torchlens_directly,
    "penzai": penzai_directly,
}
