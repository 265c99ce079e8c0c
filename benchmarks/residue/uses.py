"""Each library used once on a causal language model, directly and as its documentation teaches, and crosslens itself.

A use records one residual stream and edits one thing, or does the library's own job. `clean` says whether what the
documentation offers for cleaning up is done; it is what `Use.cleans` names. What is returned is what the
user has in his hands afterwards; letting go of it belongs to the measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

BLOCK = "model.layers.1"  # the middle one of three; all uses are for the llama family
TEXT = "the cat sat on"


@dataclass(frozen=True)
class Use:
    """One way to use a library once."""

    run: Callable[[Any, Any, bool], Any]  # (model, tokenizer, clean) -> what the user holds
    library: str  # the distribution, "" for none
    imports: str  # what a program of it imports, "" for nothing beside PyTorch and transformers
    follows: str  # the page of documentation that it follows
    cleans: str = ""  # what the documentation offers for cleaning up
    anyway: Callable[[Any, Any], object] | None = None  # what the user's program does to a model, with or without it
    hooks: bool = True  # whether it can run a model that has hooks on it


def ids_of(tokenizer: Any) -> Tensor:
    """(1, pos) token ids of the text that every use runs on."""
    return torch.tensor([tokenizer(TEXT)["input_ids"]])


def bare(model: Any, tokenizer: Any, clean: bool) -> Any:
    """A forward, and no library: what transformers and this measurement do by themselves."""
    with torch.no_grad():
        return model(ids_of(tokenizer))


def hooks(model: Any, tokenizer: Any, clean: bool) -> Any:
    """PyTorch's forward hooks: one that records, one that zeroes the last position."""
    kept: list[Tensor] = []

    def zero_last(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -1] = 0
        return output

    block = model.get_submodule(BLOCK)
    handles = [
        block.register_forward_hook(lambda module, args, output: kept.append(output.clone())),
        block.mlp.register_forward_hook(zero_last),
    ]
    with torch.no_grad():
        model(ids_of(tokenizer))
    if clean:
        for handle in handles:
            handle.remove()
    return kept


def transformer_lens(model: Any, tokenizer: Any, clean: bool) -> Any:
    """Wrap, `run_with_cache`, and one edit by `add_hook`."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    # boot_transformers(hf_model=) reloads a tokenizer that has a BOS token from its name, which one in memory lacks
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    ids = ids_of(tokenizer)
    _, cache = bridge.run_with_cache(ids)
    bridge.add_hook("blocks.1.hook_mlp_out", lambda act, hook: act * 0)
    bridge(ids)
    if clean:
        bridge.reset_hooks()
    return bridge, cache


def nnsight(model: Any, tokenizer: Any, clean: bool) -> Any:
    """One trace that edits and saves."""
    from nnsight import TransformersModel

    wrapped = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    with torch.no_grad(), wrapped.trace(TEXT):
        wrapped.model.layers[1].mlp.output[:, -1] = 0
        hidden = wrapped.model.layers[1].output.save()
    return wrapped, hidden


def pyvene(model: Any, tokenizer: Any, clean: bool) -> Any:
    """An IntervenableModel that zeroes one component and collects another."""
    import pyvene as pv

    sites = [
        {"layer": 1, "component": "mlp_output", "intervention_type": pv.ZeroIntervention},
        {"layer": 1, "component": "block_output", "intervention_type": pv.CollectIntervention},
    ]
    intervenable = pv.IntervenableModel(sites, model=model)
    collected = intervenable({"input_ids": ids_of(tokenizer)}, unit_locations={"base": 3})
    return intervenable, collected


def torchlens(model: Any, tokenizer: Any, clean: bool) -> Any:
    """A trace that records everything, and one with an intervention."""
    import torchlens as tl
    from torchlens.options import CaptureOptions

    ids, arguments = ids_of(tokenizer), {"use_cache": False}
    options = {"capture": CaptureOptions(unwrap_when_done=True)} if clean else {}
    log = tl.trace(model, ids, arguments, **options)
    edited = tl.trace(
        model, ids, arguments, intervene=tl.when(tl.module(f"{BLOCK}.mlp"), lambda act, *, hook: act * 0), **options
    )
    return log, edited


def tdhook(model: Any, tokenizer: Any, clean: bool) -> Any:
    """A session that captures a block's output and zeroes an MLP's."""
    from tdhook.session import HookSession
    from tdhook.targets import Target

    units = tuple(range(model.config.hidden_size))
    session = HookSession(model)
    with ExitStack() as stack:
        entered = session.__enter__()
        if clean:  # as a `with` statement does
            stack.push(session.__exit__)
        captured = entered.capture(Target(BLOCK, "activation", -1, units))
        entered.replace(Target(f"{BLOCK}.mlp", "activation", -1, units), 0.0)
        with torch.no_grad():
            model(ids_of(tokenizer))
    return session, captured


def captum(model: Any, tokenizer: Any, clean: bool) -> Any:
    """Integrated gradients of the next token at the embedding layer."""
    from captum.attr import LayerIntegratedGradients

    ids = ids_of(tokenizer)
    method = LayerIntegratedGradients(lambda tokens: model(tokens).logits[:, -1], model.get_input_embeddings())
    return method, method.attribute(ids, baselines=torch.zeros_like(ids), target=5, n_steps=4)


def inseq(model: Any, tokenizer: Any, clean: bool) -> Any:
    """Attribute a generation by saliency."""
    import inseq

    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    return wrapped, wrapped.attribute(TEXT, generation_args={"max_new_tokens": 2}, show_progress=False)


def penzai(model: Any, tokenizer: Any, clean: bool) -> Any:
    """Convert, save a block's output and run; the conversion is crosslens', since penzai's refuses transformers 5."""
    import jax.numpy as jnp
    from penzai import pz
    from penzai.models.transformer.model_parts import TransformerBlock
    from penzai.toolshed.save_intermediates import SaveIntermediate

    from crosslens.adapters.penzai_convert import convert

    converted = convert(model, "llama")
    saving = (
        pz.select(converted).at_instances_of(TransformerBlock).pick_nth_selected(1).insert_after(SaveIntermediate())
    )
    ids = jnp.asarray(ids_of(tokenizer).int().numpy())
    tokens = pz.nx.wrap(ids).tag("batch", "seq")
    logits = saving(tokens, rotary_positions=pz.nx.arange("seq", ids.shape[1]))
    return saving, logits, pz.unbind_state_vars(saving)[1]


def training_step(model: Any, tokenizer: Any) -> None:
    """What a training loop does to gradients, recorded or not."""
    ids = ids_of(tokenizer)
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()


def comgra(model: Any, tokenizer: Any, clean: bool) -> Any:
    """Record one training step, without the update, into a folder of the user's."""
    from pathlib import Path

    from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
    from comgra.recorder import ComgraRecorder

    root = Path("recordings_of_comgra")
    root.mkdir()
    recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    ids = ids_of(tokenizer)
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    output = model(ids, labels=ids, use_cache=False)
    recorder.register_tensor("logits", output.logits, recording_type="kpis")
    recorder.register_tensor("loss", output.loss, is_loss=True)
    model.zero_grad()
    output.loss.backward()
    recorder.record_current_gradients("gradients")
    recorder.finish_iteration()
    recorder.finish_batch()
    if clean:
        recorder.finalize()
    return recorder


def crosslens(backend: str, model: Any, tokenizer: Any, clean: bool) -> Any:
    """Open a backend; capture and edit, or attribute, or record a training step; close it."""
    from crosslens.adapters import open_inspector, zero

    lens = open_inspector(backend, model, tokenizer)
    if backend in ("captum", "inseq"):
        held: Any = lens.attribute(TEXT, 5, method="saliency")
    elif backend == "comgra":
        held = lens.record("blocks.1.resid_post")
        with held.step("a category"):
            training_step(model, tokenizer)
    else:
        held = lens.run(TEXT, capture="blocks.1.resid_post", edits=[zero("blocks.1.mlp.out", positions=[-1])])
    if clean:
        lens.close()
    return lens, held


_CROSSLENS = (
    "hooks",
    "transformer_lens",
    "nnsight",
    "pyvene",
    "torchlens",
    "tdhook",
    "captum",
    "inseq",
    "penzai",
    "comgra",
)

USES: Mapping[str, Use] = {
    "no library": Use(bare, "", "", "a forward alone"),
    "hooks": Use(hooks, "torch", "", "torch.nn.Module.register_forward_hook", "handle.remove()"),
    "transformer_lens": Use(
        transformer_lens,
        "transformer-lens",
        "transformer_lens.model_bridge",
        "README, TransformerBridge",
        "reset_hooks()",
    ),
    "nnsight": Use(nnsight, "nnsight", "nnsight", "README, Quick Start"),
    "pyvene": Use(pyvene, "pyvene", "pyvene", "tutorial pyvene_101"),
    "torchlens": Use(
        torchlens, "torchlens", "torchlens.options", "README, Quickstart", "CaptureOptions(unwrap_when_done=True)"
    ),
    "tdhook": Use(tdhook, "tdhook", "tdhook.session", "documentation of HookSession", "the end of the `with` block"),
    "captum": Use(captum, "captum", "captum.attr", "tutorial on text models, LayerIntegratedGradients"),
    "inseq": Use(inseq, "inseq", "inseq", "Quickstart"),
    "penzai": Use(penzai, "penzai", "penzai.pz", "tutorial How to Think in Penzai"),
    "comgra": Use(comgra, "comgra", "comgra.recorder", "README, minimal example", "finalize()", training_step),
    **{
        f"crosslens {name}": Use(
            partial(crosslens, name),
            "crosslens",
            f"crosslens.adapters.{name}",
            "README",
            "close()",
            training_step if name == "comgra" else None,
            name != "penzai",
        )
        for name in _CROSSLENS
    },
}
"""Every use by its name, in the order of the tables."""
