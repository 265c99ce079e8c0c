"""What can be seen of a model and its tokenizer without running them; knows no library.

A snapshot is a flat mapping of facts. Values are compared by `==`; objects that must be the very same are wrapped in
`Identity`, which also keeps them alive, so that no new object gets an old one's address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Key = tuple[str, str, str]
"""Group (model, tokenizer, process, machine, behaviour), kind, place."""

Facts = dict[Key, Any]
"""What was seen."""

_ABSENT = "absent"
_MODULES = "modules replaced or added"
_WHOLE = (_MODULES, "state-dict keys", "config", "generation_config", "attention implementation")  # not of one module
_SHOWN = 160  # characters of a value in a report
_HOOKS = {
    "forward hooks": "_forward_hooks",
    "forward pre-hooks": "_forward_pre_hooks",
    "backward hooks": "_backward_hooks",
    "backward pre-hooks": "_backward_pre_hooks",
    "state-dict hooks": "_state_dict_hooks",
    "state-dict pre-hooks": "_state_dict_pre_hooks",
    "load-state-dict pre-hooks": "_load_state_dict_pre_hooks",
    "load-state-dict post-hooks": "_load_state_dict_post_hooks",
}
# what nn.Module keeps in an instance's __dict__ and is looked at by other means; counts of hooks that take arguments
_OF_TORCH = frozenset(vars(nn.Module()))
_SCALARS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


class Identity:
    """An object, equal to none but itself."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)

    def __repr__(self) -> str:
        held = self.held
        if isinstance(held, nn.Module):  # whose own repr is pages long
            return f"{type(held).__module__}.{type(held).__qualname__}"
        name = getattr(held, "__qualname__", None)
        if isinstance(name, str):
            return f"{getattr(held, '__module__', '')}.{name}".removeprefix("builtins.")
        return f"{type(held).__module__}.{type(held).__qualname__}".removeprefix("builtins.")


@dataclass(frozen=True)
class Difference:
    """One fact that is no longer what it was; `before` and `after` as text."""

    group: str
    kind: str
    place: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.group}, {self.kind}, {self.place}: {self.before} -> {self.after}"


def differences(before: Mapping[Key, Any], after: Mapping[Key, Any]) -> list[Difference]:
    """Every fact that changed, came or went, in order of its key.

    Of a module that is another one now, or that is new, this alone is told, and not all that is different about it.
    """
    different = [key for key in sorted({*before, *after}) if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    other = {place for group, kind, place in different if (group, kind) == ("model", _MODULES)}
    return [
        Difference(*key, before=shown(before.get(key, _ABSENT)), after=shown(after.get(key, _ABSENT)))
        for key in different
        if key[0] != "model" or key[1] in _WHOLE or not other & {key[2], key[2].rpartition(".")[0]}
    ]


def shown(value: Any) -> str:
    """A value in a few words, with no address in memory."""
    if isinstance(value, tuple):
        text = f"{len(value)}: {', '.join(map(shown, value))}" if value else "none"
    else:
        text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def comparable(value: Any) -> Any:
    """A value that can be compared later, whatever is done to it until then."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return (type(value).__name__, *_items(value))
    return Identity(value)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from ((comparable(key), comparable(item)) for key, item in value.items())
    elif isinstance(value, (set, frozenset)):
        yield from sorted(map(repr, value))
    else:
        yield from map(comparable, value)


def digest(tensor: Tensor) -> str:
    """Shape, dtype and a hash of the values, bit by bit."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.blake2b(data, digest_size=8).hexdigest()}"


def model_facts(model: nn.Module) -> Facts:
    """Everything of a model that its user could stumble over later."""
    facts: Facts = {}
    for path, module in model.named_modules(remove_duplicate=False):
        facts |= _module_facts(path or "model", module)
    for kind, tensors in (("parameters", model.named_parameters()), ("buffers", model.named_buffers())):
        for name, tensor in tensors:
            facts["model", f"{kind} replaced", name] = Identity(tensor)
            facts["model", "weights", name] = digest(tensor)
            facts["model", "requires_grad", name] = tensor.requires_grad
            facts["model", "gradients", name] = None if tensor.grad is None else digest(tensor.grad)
            facts["model", "tensor hooks", name] = tuple(_tensor_hooks(tensor))
    for key, value in model.state_dict().items():
        facts["model", "state-dict keys", key] = tuple(value.shape) if isinstance(value, Tensor) else "an object"
    for attribute in ("config", "generation_config"):
        held = getattr(model, attribute, None)
        to_dict = getattr(held, "to_dict", None)
        if callable(to_dict):
            facts |= {("model", attribute, key): comparable(value) for key, value in to_dict().items()}
        if held is not None:
            facts["model", "attention implementation", attribute] = getattr(held, "_attn_implementation", None)
    return facts


def _module_facts(path: str, module: nn.Module) -> Facts:
    facts: Facts = {
        ("model", _MODULES, path): Identity(module),
        ("model", "classes of modules", path): Identity(type(module)),
        ("model", "training", path): module.training,
    }
    for kind, attribute in _HOOKS.items():
        facts["model", kind, path] = tuple(map(Identity, getattr(module, attribute, {}).values()))
    for name, value in vars(module).items():
        if name == "forward":
            facts["model", "forward", path] = Identity(value)
        elif name not in _OF_TORCH:
            facts["model", "attributes of modules", f"{path}.{name}"] = comparable(value)
    return facts


def _tensor_hooks(tensor: Tensor) -> Iterable[Identity]:
    for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        yield from map(Identity, (getattr(tensor, attribute, None) or {}).values())


def tokenizer_facts(tokenizer: Any, text: str = "the cat sat on a mat") -> Facts:
    """A tokenizer's settings, its special tokens, and what it makes of a text."""
    facts: Facts = {("tokenizer", "class", "tokenizer"): Identity(type(tokenizer))}
    # before a text is encoded, which sets padding and truncation anew
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is not None:
        facts["tokenizer", "inner state", "backend_tokenizer"] = _hash(inner.to_str())
    for name, value in vars(tokenizer).items():
        facts["tokenizer", name.replace("_", " ") if name in _SIDES else "attributes", name] = comparable(value)
    for name, value in (getattr(tokenizer, "special_tokens_map", None) or {}).items():
        facts["tokenizer", "special tokens", name] = str(value)
    facts["tokenizer", "encoding", text] = tuple(tokenizer(text)["input_ids"])
    return facts


_SIDES = ("padding_side", "truncation_side")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
