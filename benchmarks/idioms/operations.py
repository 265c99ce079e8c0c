"""The operations: what each is given, what it must come to, and what judges it.

The reference is the float64 oracle of the conformance kit, or PyTorch alone where the oracle has no such thing; no
library is asked. What comes out where nothing was done must be judged wrong, or the case says nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crosslens.adapters import add, replace, zero
from crosslens.adapters.conformance.oracle import Oracle
from crosslens.tasks import load_model

FAMILIES = ("llama", "gpt2")
TOLERANCE = 1e-4
"""Largest difference from the reference, as a part of its largest value: float32 rounding in these models is 1e-6."""

LAYER, POSITION, HEAD, NEURON, NEW = 1, 5, 2, 7, 5
CLEAN, CORRUPT, SHORT = "the cat sat on a mat", "the dog ran on a mat", "the cat sat"
TARGET, OTHER = "!", "?"
LEARNING_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Case:
    """One operation on one model.

    Args:
        inputs: what `run` of a program may ask for, by the names of its arguments.
        reference: what it must return: float64 values, or token ids.
        nothing: what comes where the operation is left out, or done as if there were no padding.
        where: bool, of the reference's leading axes: which values count; None for all.
        each: hold every number to itself rather than to the largest, for figures of different size.
        most_work: floating point operations that it may take at most; None for any number.
    """

    inputs: Mapping[str, Any]
    reference: Tensor
    nothing: Tensor
    where: Tensor | None = None
    each: bool = False
    most_work: int | None = None


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        name: of the programs' files.
        question: what is asked for, in words.
        returns: shape and meaning of what `run` returns.
        prepare: family and an empty folder -> the case.
    """

    name: str
    question: str
    returns: str
    prepare: Callable[[str, Path], Case]


@dataclass(frozen=True)
class Verdict:
    """What came of a program: `error` is relative to the reference, or the number of wrong tokens."""

    outcome: Literal["right", "wrong"]
    error: float | None
    note: str


def judge(case: Case, result: Any, work: int | None = None) -> Verdict:
    """Hold a result, and the work that it took, to the case."""
    if not isinstance(result, Tensor):
        return Verdict("wrong", None, f"gave a {type(result).__name__}, not a tensor")
    result, reference = result.detach().cpu(), case.reference
    if result.shape != reference.shape:
        return Verdict("wrong", None, f"gave the shape {tuple(result.shape)}, not {tuple(reference.shape)}")
    if not reference.is_floating_point():
        differ = int((result != reference).sum())
        return Verdict("wrong" if differ else "right", float(differ), f"{differ} wrong tokens" if differ else "")
    result = result.double()
    if case.where is not None:
        result, reference = result[case.where], reference[case.where]
    scale = reference.abs() if case.each else reference.abs().max()
    error = float(((result - reference).abs() / scale).max())
    if not error <= TOLERANCE:
        return Verdict("wrong", error, f"differs from the reference by {error:.2g} of it")
    if case.most_work is not None and work is not None and work > case.most_work:
        return Verdict("wrong", error, f"took {work} operations; to stop there takes less than {case.most_work}")
    return Verdict("right", error, "")


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the floating point operations of what runs inside, whoever runs it; JAX's are not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


class Net(nn.Module):
    """A network that no library knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.hidden = nn.Linear(3 * 6 * 6, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        """images (batch, 1, 8, 8) -> (batch, 4)"""
        features: Tensor = self.conv(images).relu().flatten(1)
        out: Tensor = self.head(self.hidden(features).tanh())
        return out


def _empty(folder: Path) -> Path:
    """For what a program writes."""
    (folder / "recording").mkdir()
    return folder / "recording"


class _Setting:
    """A tiny model, its tokenizer as if it came from a checkpoint, its oracle, and the prompts."""

    def __init__(self, family: str, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.model, tokenizer = load_model(f"tiny-{family}")
        tokenizer.save_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.oracle = Oracle(self.model)
        self.ids, self.source = self.encode(CORRUPT), self.encode(CLEAN)
        self.layers = range(self.model.config.num_hidden_layers)
        self.folder = _empty(folder)

    def encode(self, text: str) -> Tensor:
        """(1, pos) token ids."""
        return torch.tensor([self.tokenizer(text)["input_ids"]])

    def case(self, reference: Tensor, nothing: Tensor, **others: Any) -> Case:
        """With the inputs that most operations share, and others."""
        fields = {name: others.pop(name) for name in ("where", "each", "most_work") if name in others}
        shared = {"model": self.model, "tokenizer": self.tokenizer, "ids": self.ids, "text": CORRUPT}
        return Case({**shared, "folder": self.folder, **others}, reference, nothing, **fields)


def _sites(name: str) -> Callable[[str, Path], Case]:
    """Every block's tensor at one site."""

    def prepare(family: str, folder: Path) -> Case:
        at = _Setting(family, folder)
        sites = at.oracle.run(at.ids).sites
        found = torch.stack([sites[f"blocks.{layer}.{name}"] for layer in at.layers])
        return at.case(found, found[[0] * len(found)])

    return prepare


def _patch_position(family: str, folder: Path) -> Case:
    at, site = _Setting(family, folder), f"blocks.{LAYER}.resid_post"
    value = at.oracle.run(at.source).sites[site][:, [POSITION]]
    edited = at.oracle.run(at.ids, edits=[replace(site, value, positions=[POSITION])]).logits
    others = {"source": at.source, "layer": LAYER, "position": POSITION}
    return at.case(edited, at.oracle.run(at.ids).logits, **others)


def _patch_head(family: str, folder: Path) -> Case:
    at, site = _Setting(family, folder), f"blocks.{LAYER}.attn.z"
    value = at.oracle.run(at.source).sites[site][:, :, [HEAD]]
    edited = at.oracle.run(at.ids, edits=[replace(site, value, heads=[HEAD])]).logits
    return at.case(edited, at.oracle.run(at.ids).logits, source=at.source, layer=LAYER, head=HEAD)


def _zero_neuron(family: str, folder: Path) -> Case:
    at = _Setting(family, folder)
    edited = at.oracle.run(at.ids, edits=[zero(f"blocks.{LAYER}.mlp.post", units=[NEURON])]).logits
    return at.case(edited, at.oracle.run(at.ids).logits, layer=LAYER, neuron=NEURON)


def _steer_generation(family: str, folder: Path) -> Case:
    at = _Setting(family, folder)
    vector = 4 * torch.randn(at.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    edit = add(f"blocks.{LAYER}.resid_post", vector[None, None].double())
    tokens, _ = at.oracle.generate(at.ids, NEW, edits=[edit])
    return at.case(tokens, at.oracle.generate(at.ids, NEW)[0], layer=LAYER, vector=vector, new_tokens=NEW)


def _gradient_at_site(family: str, folder: Path) -> Case:
    at, site = _Setting(family, folder), f"blocks.{LAYER}.resid_post"
    token, other = (int(at.encode(text)[0, 0]) for text in (TARGET, OTHER))
    found = at.oracle.gradients(at.ids, [site], lambda logits: logits[:, -1, token] - logits[:, -1, other])[site]
    alone = at.oracle.gradients(at.ids, [site], lambda logits: logits[:, -1, token])[site]
    return at.case(found, alone, layer=LAYER, token=token, other=other)


def _capture_generating(family: str, folder: Path) -> Case:
    at, site = _Setting(family, folder), f"blocks.{LAYER}.resid_post"
    tokens, run = at.oracle.generate(at.ids, NEW)
    turned = at.oracle.run(tokens[:, :-1].flip(1)).sites[site]
    return at.case(run.sites[site], turned, layer=LAYER, new_tokens=NEW)


def _stop_early(family: str, folder: Path) -> Case:
    at = _Setting(family, folder)
    with torch.no_grad(), Work() as whole:
        at.model(at.ids, use_cache=False)
    sites = at.oracle.run(at.ids).sites
    found, before = sites["blocks.0.resid_post"], sites["blocks.0.resid_pre"]
    return at.case(found, before, layer=0, most_work=whole.flops // 2)


def _padded_batch(family: str, folder: Path) -> Case:
    at, site = _Setting(family, folder), f"blocks.{LAYER}.resid_post"
    texts = [SHORT, CLEAN]
    batch = at.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found, unmasked = at.oracle.run(ids, mask).sites[site], at.oracle.run(ids).sites[site]
    given = {"ids": ids, "mask": mask, "texts": texts, "layer": LAYER}
    return at.case(found, unmasked, where=mask.bool(), **given)


def _any_module(family: str, folder: Path) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = Net().eval(), torch.randn(5, 1, 8, 8)
    exact: Any = copy.deepcopy(model).double()
    with torch.no_grad():
        found = exact.hidden(exact.conv(images.double()).relu().flatten(1))
    return Case({"model": model, "images": images, "folder": _empty(folder)}, found, found.tanh())


def _record_steps(family: str, folder: Path) -> Case:
    at = _Setting(family, folder)
    made = torch.Generator().manual_seed(2)
    batches = [(kind, torch.randint(3, 250, (4, 6 if kind == "easy" else 9), generator=made))
               for kind in ("easy", "hard", "hard", "easy", "hard", "easy")]  # fmt: skip
    exact, still = copy.deepcopy(at.model).double(), copy.deepcopy(at.model).double()
    found, untrained = _figures(exact, batches, LEARNING_RATE), _figures(still, batches, 0.0)
    given = {"batches": batches, "layer": LAYER, "learning_rate": LEARNING_RATE}
    return at.case(found, untrained, each=True, **given)


def _figures(model: Any, batches: Sequence[tuple[str, Tensor]], rate: float) -> Tensor:
    """(category, figure): mean over the category's steps of a residual stream's mean and its gradient's largest value.

    The mean of the gradient would be no figure: behind a norm that subtracts the mean it is 0.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    rows: dict[str, list[Tensor]] = {}
    for kind, ids in batches:
        output = model(ids, labels=ids, output_hidden_states=True, use_cache=False)
        stream = output.hidden_states[LAYER + 1]
        (gradient,) = torch.autograd.grad(output.loss, stream, retain_graph=True)
        rows.setdefault(kind, []).append(torch.stack([stream.mean(), gradient.abs().max()]).detach())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])


def _input_attribution(family: str, folder: Path) -> Case:
    at = _Setting(family, folder)
    token = int(at.encode(TARGET)[0, 0])
    embed = at.oracle.run(at.ids).sites["embed"]
    gradient = at.oracle.gradients(at.ids, ["embed"], lambda logits: logits[:, -1, token])["embed"]
    return at.case((embed * gradient).sum(-1)[0], (embed * gradient).abs().sum(-1)[0], token=token, target=TARGET)


_ALL = (
    Operation("capture_residuals", "record the residual stream behind every block",
              "(layer, batch, pos, d_model)", _sites("resid_post")),
    Operation("attention_patterns", "record the attention of every block, after softmax",
              "(layer, batch, head, query, key)", _sites("attn.pattern")),
    Operation("head_outputs", "record what each head of every block gives, before the output projection",
              "(layer, batch, pos, head, d_head)", _sites("attn.z")),
    Operation("patch_position", "put the residual stream of another prompt, at one block and position, into this one",
              "(batch, pos, d_vocab) logits", _patch_position),
    Operation("patch_head", "put what one head gives for another prompt into this one",
              "(batch, pos, d_vocab) logits", _patch_head),
    Operation("zero_neuron", "set one neuron of one MLP to zero at every position",
              "(batch, pos, d_vocab) logits", _zero_neuron),
    Operation("steer_generation", "add a vector to the residual stream at every position while tokens are generated",
              "(batch, prompt + new) token ids", _steer_generation),
    Operation("gradient_at_site", "differentiate the difference of two logits at the residual stream behind a block",
              "(batch, pos, d_model)", _gradient_at_site),
    Operation("capture_generating", "record the residual stream behind a block at every token that is read while "
              "tokens are generated", "(batch, prompt + new - 1, d_model)", _capture_generating),
    Operation("stop_early", "record the residual stream behind the first block, and run no further",
              "(batch, pos, d_model)", _stop_early),
    Operation("padded_batch", "record the residual stream of two prompts of different length in one batch, padded on "
              "the left; each must have what it has alone", "(batch, pos, d_model)", _padded_batch),
    Operation("any_module", "record the hidden layer of a network of one's own",
              "(batch, d_hidden)", _any_module),
    Operation("record_steps", "record, in a training loop with two kinds of steps, the mean of a residual stream and "
              "the largest absolute value of its gradient, for each kind",
              "(kind, figure), means over the steps of a kind", _record_steps),
    Operation("input_attribution", "what each token of the prompt contributes to the logit of the next one: its "
              "embedding times the gradient, summed", "(pos,)", _input_attribution),
)  # fmt: skip

OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in _ALL}


def families(operation: str) -> tuple[str, ...]:
    """Families of models that an operation is run on; a network of one's own is of none."""
    return ("llama",) if operation == "any_module" else FAMILIES
