"""What came of a mistake: refused, error, warned, silent or right, decided by rule from what the program left."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from .catalogue import Mistake

Kind = Literal["refused", "error", "warned", "silent", "right", "n/a"]
KINDS: tuple[Kind, ...] = ("refused", "error", "warned", "silent", "right", "n/a")
RIGHT = 1e-3
"""Largest error, relative to the largest magnitude of what was meant, of a right result: rounding stays below 1e-5."""

_ARITHMETIC = re.compile(
    r"/torch/nn/functional\.py|/torch/nn/modules/(?!module\.py|container\.py)|/transformers/(?!generation/|utils/)|"
    r"/generalized_components/|/penzai/nn/"
)


@dataclass(frozen=True)
class Material:
    """What a program left behind.

    Args:
        value: the tensor that the user gets; None where an error was raised.
        error: `Type: message` of the exception.
        raised_in: file of the innermost frame of the exception.
        said: warnings, logs and whatever else reached the console.
        culprit: instead of the mistake's own, where a library has its own word for it.
        documented: words of the library's own documentation that state this result.
        note: a remark of the program's author.
        absent: why the mistake is not made with this library.
        impossible: why it cannot be made with it.
    """

    value: Tensor | None = None
    error: str = ""
    raised_in: str = ""
    said: str = ""
    culprit: str = ""
    documented: str = ""
    note: str = ""
    absent: str = ""
    impossible: str = ""


@dataclass(frozen=True)
class Outcome:
    """The class of what happened.

    Args:
        library, mistake: names.
        kind: one of `KINDS`.
        damage: of a result that is not what was meant: its largest error relative to the largest magnitude of what was
            meant, to three digits, or for tokens the share that differs. 0 where it is right; None where the two cannot
            be compared, as `note` says.
        says: the error or warning, one line of it.
        note: a remark.
    """

    library: str
    mistake: str
    kind: Kind
    damage: float | None = None
    says: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(library: str, mistake: Mistake, meant: Tensor | None, material: Material) -> Outcome:
    """Classify.

    `refused` is an exception that matches the mistake's culprit, raised before the model computes with what is wrong;
    an exception out of the model's own arithmetic is an `error`, whatever it says. A wrong result is `warned` where the
    console names the culprit, `right` where the library's documentation states it, and `silent` otherwise.
    """
    if material.absent:
        return Outcome(library, mistake.name, "n/a", note=material.absent)
    if material.impossible:
        return Outcome(library, mistake.name, "right", note=f"cannot be made: {material.impossible}")
    names = re.compile(material.culprit or mistake.culprit, re.IGNORECASE)
    if material.error:
        late = bool(_ARITHMETIC.search(material.raised_in))
        kind: Kind = "refused" if names.search(material.error) and not late else "error"
        where = "raised by the model's own arithmetic" if late else ""
        note = "; ".join(filter(None, (where, material.note)))
        return Outcome(library, mistake.name, kind, says=_line(material.error), note=note)
    damage, how = difference(material.value, meant)
    if damage is not None and damage <= RIGHT:
        return Outcome(library, mistake.name, "right", 0.0, note=material.note)
    spoken = next((line.strip() for line in material.said.splitlines() if names.search(line)), "")
    note = "; ".join(filter(None, (how, material.note)))
    if spoken:
        return Outcome(library, mistake.name, "warned", damage, _line(spoken), note)
    if material.documented:
        return Outcome(library, mistake.name, "right", damage, note=f"documented: {material.documented!r}; {note}")
    return Outcome(library, mistake.name, "silent", damage, note=note)


def difference(value: Tensor | None, meant: Tensor | None) -> tuple[float | None, str]:
    """Damage of a value, and in words what no number says."""
    if not isinstance(value, Tensor):
        return None, f"the user gets {type(value).__name__}"
    if meant is None:
        return None, "a result where none could be right"
    if value.shape != meant.shape:
        return None, f"shape {tuple(value.shape)} for {tuple(meant.shape)}"
    if not meant.is_floating_point():
        return float((value != meant).double().mean()), ""
    value = value.detach().double()
    if not bool(value.isfinite().all()):
        return None, "not finite"
    return float(f"{(value - meant).abs().max() / meant.abs().max():.3g}"), ""


def _line(text: str, width: int = 200) -> str:
    """One line, without what differs from run to run."""
    text = re.sub(r"0x[0-9a-f]+", "0x...", " ".join(text.split()))
    text = re.sub(r"(?<![\w:/])(?:/[\w.+-]+)+/(?=[\w.-]+)", "", text)
    return text if len(text) <= width else text[: width - 1] + "\u2026"
