"""The operations: what each is on one model and shape, bare, in plain hooks, and through an Inspector.

Plain hooks are written here or in the programs of `idioms`; what they give is what everybody else is held to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters import Edit, InputError, Inspector, add, apply, replace, scale, zero
from crosslens.adapters.architectures import Architecture, describe
from crosslens.adapters.plan import Point, locate
from crosslens.benchmarks.timing import Call

NEW = 5
"""Tokens of a generation."""
FACTOR = -3.0
"""That a head is multiplied by: enough to show in the logits."""

_WORDS = "the a of time year people way day man thing woman life child world school state family student group country"
_PASS = {"use_cache": False}


@dataclass(frozen=True, eq=False)
class Work:
    """One model on one shape.

    Args:
        ids, source: (batch, pos) token ids; `source` is another prompt, to patch from.
        layer: the block at which most operations work.
        head, neuron: of that block; the neuron is the one with the largest mean absolute value.
        vector: (d_model,) that is added.
        token, other: ids whose logits are read.
        parameters: whatever may be left with a gradient.
    """

    model: Any
    tokenizer: Any
    architecture: Architecture
    ids: Tensor
    source: Tensor
    layer: int
    head: int
    neuron: int
    vector: Tensor
    token: int
    other: int
    parameters: list[nn.Parameter] = field(default_factory=list)

    @property
    def site(self) -> str:
        """The residual stream behind the block."""
        return f"blocks.{self.layer}.resid_post"

    @property
    def text(self) -> str:
        """The first row."""
        found: str = self.tokenizer.decode(self.ids[0].tolist())
        return found

    @property
    def everything(self) -> list[str]:
        """All canonical sites but the patterns: those force another attention kernel, so another forward."""
        return [name for name in self.architecture.sites.canonical if not name.endswith("attn.pattern")]

    def metric(self, logits: Tensor) -> Tensor:
        """(batch, pos, d_vocab) -> (): of the first row, for the programs of the libraries take one."""
        return logits[0, -1, self.token] - logits[0, -1, self.other]


def prepare(model: Any, tokenizer: Any, batch: int, tokens: int) -> Work:
    """What the operations work on, the same in every process.

    Raises:
        InputError: the model is no llama.
    """
    architecture = describe(model)
    check_family(architecture)
    sizes, device = architecture.sizes, model.get_input_embeddings().weight.device
    drawn, rows = random.Random(0), []
    for _ in range(2 * batch):  # words of their own for each row, so that a row is a text that a tokenizer gives back
        text = " ".join(drawn.choices(_WORDS.split(), k=2 * tokens))
        rows.append(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])
    ids = torch.tensor(rows, device=device)
    layer = sizes["n_layers"] // 2
    made = torch.Generator().manual_seed(0)
    (neurons,) = Hooks(model, {"neurons": (f"model.layers.{layer}.mlp.down_proj", "input")}).capture(ids[:batch])
    (stream,) = Hooks(model, {"stream": (f"model.layers.{layer}", "output")}).capture(ids[:batch])
    vector = 0.5 * float(stream.std()) * torch.randn(sizes["d_model"], generator=made)
    token, other = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" year", " woman"))
    return Work(
        model, tokenizer, architecture, ids[:batch], ids[batch:], layer, sizes["head"] // 2,
        int(neurons.abs().mean((0, 1)).argmax()), vector.to(device, stream.dtype), token, other,
        list(model.parameters()),
    )  # fmt: skip


def check_family(architecture: Architecture) -> None:
    """Refuse a model that the programs are not for.

    Raises:
        InputError: it is no llama.
    """
    name = architecture.family.name if architecture.family else "unknown"
    if name != "llama":
        raise InputError(f"this study's programs are for models of the family llama; this model's is {name}")


class Hooks:
    """Plain PyTorch hooks, registered for one forward and removed after it.

    Args:
        places: name -> (path of a module, `input` or `output`).
        change: what a place's tensor becomes; None to record it.
    """

    def __init__(
        self, model: Any, places: Mapping[str, tuple[str, str]], change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.model, self.places, self.change = model, dict(places), change

    def capture(self, ids: Tensor) -> list[Tensor]:
        """One forward; a copy of each place's tensor, in the order of the places."""
        kept: dict[str, Tensor] = {}
        self._forward(ids, lambda name, tensor: kept.update({name: tensor.clone()}))
        return [kept[name] for name in self.places]

    def edit(self, ids: Tensor) -> Tensor:
        """One forward with the change; logits (batch, pos, d_vocab)."""
        change = self.change
        assert change is not None, "nothing to change"
        return self._forward(ids, lambda name, tensor: change(tensor))

    def _forward(self, ids: Tensor, act: Callable[[str, Tensor], Tensor | None]) -> Tensor:
        handles = []
        for name, (path, side) in self.places.items():
            module = self.model.get_submodule(path)

            def after(module: Any, args: Any, output: Any, name: str = name) -> Any:
                if isinstance(output, tuple):
                    new = act(name, output[0])
                    return None if new is None else (new, *output[1:])
                return act(name, output)

            def before(module: Any, args: Any, name: str = name) -> Any:
                return act(name, args[0])

            if side == "output":
                handles.append(module.register_forward_hook(after))
            else:
                handles.append(module.register_forward_pre_hook(before))
        try:
            with torch.no_grad():
                logits: Tensor = self.model(ids, **_PASS).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        question: what is asked for, in words.
        needs: capabilities of a backend that does it.
        bare: what the model itself takes for it: the forwards, forward and backward, or generation.
        through: the same through an Inspector.
        idiom: of `idioms`, the operation whose programs do this; empty where there is none.
        native: in plain hooks, where no program of `idioms` does it.
    """

    question: str
    needs: tuple[str, ...]
    bare: Callable[[Work], Call]
    through: Callable[[Inspector, Work], Call]
    idiom: str = ""
    native: Callable[[Work], Call] | None = None


def forward(work: Work) -> Call:
    """One forward."""
    return lambda: _no_grad(work, work.ids)


def two_forwards(work: Work) -> Call:
    """One of each prompt."""
    return lambda: (_no_grad(work, work.source), _no_grad(work, work.ids))[1]


def _no_grad(work: Work, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = work.model(ids, **_PASS).logits
    return logits


def backward(work: Work) -> Call:
    """Forward, and the gradient of the metric at the embeddings."""

    def call() -> Tensor:
        embeds = work.model.get_input_embeddings()(work.ids).detach().requires_grad_()
        found: Tensor = torch.autograd.grad(work.metric(work.model(inputs_embeds=embeds, **_PASS).logits), embeds)[0]
        return found

    return call


def generation(work: Work) -> Call:
    """The model's own greedy generation."""
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return lambda: work.model.generate(work.ids, **options)


def _captures(sites: Callable[[Work], list[str]]) -> dict[str, Any]:
    """Recording some sites."""

    def native(work: Work) -> Call:
        table, places = work.architecture.sites, {}
        for name in sites(work):
            (site,) = table.resolve(name)
            point = locate(work.architecture.address(site), site, work.architecture.sizes).key
            assert isinstance(point, Point), f"{name} is at no module"
            places[name] = (point.path, point.side)
        hooks = Hooks(work.model, places)
        return lambda: hooks.capture(work.ids)

    def through(lens: Inspector, work: Work) -> Call:
        names = sites(work)
        return lambda: list(lens.run(work.ids, capture=names).values())

    return {"bare": forward, "native": native, "through": through}


def _edits(
    edit: Callable[[Work], Edit], local: str, change: Callable[[Work], Callable[[Tensor], Tensor]] | None
) -> dict[str, Any]:
    """One edit; `change` says it of the tensor at the output of the block, or the input of `local` in it."""

    def native(work: Work) -> Call:
        assert change is not None, "a program of idioms does it"
        path = f"model.layers.{work.layer}"
        place = (f"{path}.{local}", "input") if local else (path, "output")
        hooks = Hooks(work.model, {"": place}, change(work))
        return lambda: hooks.edit(work.ids)

    def through(lens: Inspector, work: Work) -> Call:
        edits = [edit(work)]
        return lambda: lens.run(work.ids, edits=edits).logits

    return {"bare": forward, "native": native if change else None, "through": through}


def _patching(lens: Inspector, work: Work) -> Call:
    def call() -> Tensor:
        value = lens.run(work.source, capture=[work.site])[work.site][:, [-1]]
        return lens.run(work.ids, edits=[replace(work.site, value, positions=[-1])]).logits

    return call


def _gradients(lens: Inspector, work: Work) -> Call:
    return lambda: lens.gradients(work.ids, ["blocks.0.resid_post"], work.metric)["blocks.0.resid_post"]


def _steering(lens: Inspector, work: Work) -> Call:
    edits = [add(work.site, work.vector.expand(len(work.ids), 1, -1))]
    return lambda: lens.generate(work.ids, max_new_tokens=NEW, edits=edits).tokens


def _attribution(lens: Inspector, work: Work) -> Call:
    return lambda: lens.attribute(work.ids, work.token, method="input_x_gradient").scores[0]


def _scaled(work: Work) -> Callable[[Tensor], Tensor]:
    width = work.architecture.sizes["d_head"]
    units = slice(work.head * width, (work.head + 1) * width)

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[..., units] *= FACTOR
        return tensor

    return change


_RESIDUAL, _ALL = ("capture.residual",), ("capture.residual", "capture.attention", "capture.mlp")

OPERATIONS: Mapping[str, Operation] = {
    "capture_one": Operation("record the residual stream behind one block", _RESIDUAL,
        **_captures(lambda work: [work.site])),
    "capture_residuals": Operation("record the residual stream behind every block", _RESIDUAL,
        **_captures(lambda work: [f"blocks.{i}.resid_post" for i in range(work.architecture.sizes["n_layers"])])),
    "capture_everything": Operation("record every site but the attention patterns", _ALL,
        **_captures(lambda work: work.everything)),
    "replace": Operation("put one position of another prompt's residual stream into this one (two forwards)",
        (*_RESIDUAL, "edit.replace", "edit.positions"), two_forwards, _patching, "patch_position"),
    "add": Operation("add a vector to the residual stream behind one block", ("edit.add",),
        **_edits(lambda work: add(work.site, work.vector.expand(*work.ids.shape, -1)), "",
                 lambda work: lambda tensor: tensor + work.vector)),
    "scale": Operation(f"multiply one head by {FACTOR:g}", ("edit.scale", "edit.heads"),
        **_edits(lambda work: scale(f"blocks.{work.layer}.attn.z", FACTOR, heads=[work.head]), "self_attn.o_proj",
                 _scaled)),
    "zero": Operation("set one neuron of one MLP to zero", ("edit.zero", "edit.units"), idiom="zero_neuron",
        **_edits(lambda work: zero(f"blocks.{work.layer}.mlp.post", units=[work.neuron]), "", None)),
    "apply": Operation("pass the residual stream behind one block through a function", ("edit.apply",),
        **_edits(lambda work: apply(work.site, torch.tanh), "", lambda work: torch.tanh)),
    "gradients": Operation("differentiate a difference of two logits at the residual stream behind the first block",
        ("gradients",), backward, _gradients, "gradient_at_site"),
    "generate": Operation(f"add a vector to the residual stream behind one block while {NEW} tokens are generated",
        ("generate", "generate.edit", "edit.add"), generation, _steering, "steer_generation"),
    "attribute": Operation("embedding times gradient of each token of the prompt", ("attribute",), backward,
        _attribution, "input_attribution"),
}  # fmt: skip
