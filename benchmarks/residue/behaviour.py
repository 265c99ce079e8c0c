"""What a user does with a model later, done before and after; knows no library.

Each behaviour gives tensors or ends in an error, and both are compared: an error that was there before is no residue.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .snapshot import Difference, shown

Outcome = list[Tensor] | str
"""Tensors that came of it, or the error."""


class CountingHook:
    """A forward hook of the user's own, which counts its calls; it can be pickled."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.calls += 1


def outcomes(model: Any, tokenizer: Any, ids: Tensor, hook: CountingHook, twin: Any) -> dict[str, Outcome]:
    """Do everything with a causal language model of transformers.

    Args:
        model: its parameters are not changed, nor is their `.grad`.
        tokenizer: with a pad token.
        ids: (batch, pos) token ids.
        hook: registered on a module that every forward calls once.
        twin: a copy of the model as it was before, which takes its state dict.
    """
    ways: dict[str, Callable[[], Sequence[Any]]] = {
        "forward": lambda: [logits(model, ids)],
        "the user's own hook": lambda: [_calls(model, ids, hook)],
        "output_hidden_states": lambda: model(ids, output_hidden_states=True, use_cache=False).hidden_states,
        "gradients": lambda: _gradients(model, ids),
        "generate": lambda: [model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)],
        "a padded batch": lambda: _padded(model, tokenizer),
        "copy.deepcopy": lambda: _copied(model, ids),
        "state_dict": lambda: [_loaded(twin, model.state_dict(), ids)],
        "save_pretrained and load": lambda: [_saved(model, ids)],
        "torch.compile": lambda: [_compiled(model, ids)],
        "torch.export": lambda: [_exported(model, ids)],
    }
    return {name: _outcome(way) for name, way in ways.items()}


def pickled(model: Any, ids: Tensor) -> dict[str, Outcome]:
    """Pickle a model, and save it whole by `torch.save`, and run what is loaded again."""

    def by_torch() -> list[Tensor]:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return [logits(torch.load(file, weights_only=False), ids)]

    return {
        "pickle": _outcome(lambda: [logits(pickle.loads(pickle.dumps(model)), ids)]),
        "torch.save of the model": _outcome(by_torch),
    }


def changed(before: Mapping[str, Outcome], after: Mapping[str, Outcome]) -> list[Difference]:
    """The behaviours that are no longer what they were, with the size of the damage."""
    found = []
    for name, was in before.items():
        now = after[name]
        text = _compared(was, now)
        if text:
            found.append(Difference("behaviour", name, name, _shown(was), text))
    return found


def logits(model: Any, ids: Tensor) -> Tensor:
    """(batch, pos, vocabulary), without a gradient."""
    with torch.no_grad():
        return _value(model(ids, use_cache=False).logits)


def _value(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _outcome(way: Callable[[], Sequence[Any]]) -> Outcome:
    try:
        return [_value(each) for each in way()]
    except Exception as error:  # whatever it is, it is what the user gets
        return shown(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _calls(model: Any, ids: Tensor, hook: CountingHook) -> Tensor:
    before = hook.calls
    logits(model, ids)
    return torch.tensor(hook.calls - before)


def _gradients(model: Any, ids: Tensor) -> list[Tensor]:
    trained = [each for each in model.parameters() if each.requires_grad]
    with torch.enable_grad():
        loss = model(ids, labels=ids, use_cache=False).loss
        return list(torch.autograd.grad(loss, trained))


def _padded(model: Any, tokenizer: Any) -> list[Tensor]:
    batch = tokenizer(["the cat", "the cat sat on a mat"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return [batch["input_ids"], batch["attention_mask"], model(**batch, use_cache=False).logits]


def _copied(model: Any, ids: Tensor) -> list[Tensor]:
    """Logits of the copy, and those of the original after the copy's weights were changed."""
    other = copy.deepcopy(model)
    first = logits(other, ids)
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    return [first, logits(model, ids)]


def _loaded(twin: Any, state: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    twin.load_state_dict(state, strict=True)
    return logits(twin, ids)


def _saved(model: Any, ids: Tensor) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return logits(type(model).from_pretrained(folder, attn_implementation="sdpa"), ids)


def _compiled(model: Any, ids: Tensor) -> Tensor:
    torch.compiler.reset()
    try:
        return logits(torch.compile(model, backend="eager", fullgraph=True), ids)
    finally:
        torch.compiler.reset()


def _exported(model: Any, ids: Tensor) -> Tensor:
    return logits(torch.export.export(model, (ids,), {"use_cache": False}).module(), ids)


def _compared(was: Outcome, now: Outcome) -> str:
    """What differs, nothing where nothing does."""
    if isinstance(was, str) or isinstance(now, str):
        return "" if was == now else _shown(now)
    if [each.shape for each in was] != [each.shape for each in now]:
        return _shown(now)
    pairs = [(a, b) for a, b in zip(was, now, strict=True) if not torch.equal(a, b)]
    if not pairs:
        return ""
    if not pairs[0][0].is_floating_point():  # counts and token ids: how far off says nothing
        return _shown([pairs[0][1]]) if pairs[0][0].ndim == 0 else "other whole numbers"
    return f"off by {max(float((a.double() - b.double()).abs().max()) for a, b in pairs):.2g}"


def _shown(outcome: Outcome) -> str:
    if isinstance(outcome, str):
        return outcome
    if len(outcome) == 1 and outcome[0].ndim == 0:
        return f"{outcome[0].item():g}"
    return f"{len(outcome)} tensor{'s' * (len(outcome) != 1)}"
