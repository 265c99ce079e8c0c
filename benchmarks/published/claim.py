"""A published figure: where it stands, how it is measured here, and how the two are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from crosslens.benchmarks.estimate import Estimate, median_ratio

Rule = Literal["equals", "up to", "below"]
_WIDE = 1.5  # upper end of an interval to its lower, above which it says little
Unit = Literal["×", "µs", "", "orders"]
Kept = dict[str, Any]
"""What one process measured for one row, as JSON: `samples`, pairs of seconds of the baseline and of what is compared
with it, or `values`; `facts` beside them; or `error`."""


@dataclass(frozen=True)
class Source:
    """Where a figure stands.

    Args:
        work: whose.
        place: repository and file, or address.
        version: commit, and the version of the library where it is said.
        date: of the figure.
    """

    work: str
    place: str
    version: str
    date: str


@dataclass(frozen=True)
class Scale:
    """How much a process does.

    Args:
        tiny: models and inputs small enough for a test, which say nothing about any claim.
        seconds: of pairs for a timed row, beside its warm-up; three pairs are always made.
        seed: of the process: weights, inputs and the order within each pair.
    """

    tiny: bool = False
    seconds: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What is known of a row after measuring.

    Args:
        estimate: of the figure, in the claim's unit; None if nothing could be measured.
        worst: the largest value that was seen, for a bound.
        bare_s: median seconds of the baseline, for a timed row.
        step_s: of what was compared with it.
        processes: how many processes it comes from.
        count: pairs or values in all.
        facts: what the processes noted, of the first that noted it.
        errors: of processes that measured nothing.
    """

    estimate: Estimate | None = None
    worst: float | None = None
    bare_s: float | None = None
    step_s: float | None = None
    processes: int = 0
    count: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    errors: tuple[str, ...] = ()

    @property
    def added_ms(self) -> float:
        """Milliseconds that a call takes beyond the baseline; negative where it takes less."""
        return 1000 * ((self.step_s or 0.0) - (self.bare_s or 0.0))


Why = Callable[[Found, Mapping[str, Found]], str]
"""Row, all rows -> why the two figures differ, computed from what was measured, or `not established`."""


@dataclass(frozen=True)
class Claim:
    """One row.

    Args:
        id: `source.what`, unique.
        source: where it stands.
        said: what is claimed, in words.
        figure: what is claimed, in `unit`; None where the source has a place for it but no figure.
        workload: what is measured here.
        unit: `×` for the ratio of what is compared to the baseline, `µs` for the time of the former, else of `values`.
        rule: the figure is the value itself, the largest that is reached, or a bound.
        half: half a unit of the last digit that was published.
        group: rows of one group share a process.
        measure: does it; None where it cannot be done here.
        missing: what it would take, then.
        why: why the figures differ.
        once: whether one process is enough: the row repeats by itself or computes.
    """

    id: str
    source: Source
    said: str
    figure: float | None
    workload: str = ""
    unit: Unit = "×"
    rule: Rule = "equals"
    half: float = 0.005
    group: str = ""
    measure: Callable[[Scale], Kept] | None = None
    missing: str = ""
    why: Why | None = None
    once: bool = False


@dataclass(frozen=True)
class Verdict:
    """`agrees`, `differs`, `undecided`, `holds`, `does not hold`, `no figure`, `not measured`, `failed`; in words."""

    word: str
    text: str


def found(claim: Claim, kept: Sequence[Kept]) -> Found:
    """Join what the processes kept of a row.

    Times give the mean over processes of each one's median, with its interval (`estimate.median_ratio`); values their
    median and their range.
    """
    errors = tuple(each["error"] for each in kept if "error" in each)
    good = [each for each in kept if "error" not in each]
    facts = {key: value for each in reversed(good) for key, value in each.get("facts", {}).items()}
    if not good:
        return Found(errors=errors)
    timed = [np.asarray(each["samples"], dtype=np.float64) for each in good if "samples" in each]
    if timed:
        ratios = [1e6 * pairs[:, 1] if claim.unit == "µs" else pairs[:, 1] / pairs[:, 0] for pairs in timed]
        bare_s, step_s = (float(np.median([np.median(pairs[:, side]) for pairs in timed])) for side in (0, 1))
        count = sum(map(len, timed))
        return Found(median_ratio(ratios), None, bare_s, step_s, len(good), count, facts, errors)
    values = np.concatenate([np.asarray(each["values"], dtype=np.float64) for each in good])
    estimate = Estimate(float(np.median(values)), float(values.min()), float(values.max()))
    return Found(estimate, estimate.high, None, None, len(good), len(values), facts, errors)


def verdict(claim: Claim, seen: Found) -> Verdict:
    """Compare the interval with the figure.

    A figure agrees if the interval, widened by half a unit of the figure's last digit, covers it. A figure that is said
    to be reached is reached if the interval does not end below it; a bound holds if no value is above it. An interval
    whose upper end is more than one and a half times its lower decides nothing by covering the figure.
    """
    if claim.measure is None:
        return Verdict("not measured", f"cannot be measured here: {claim.missing}")
    if seen.estimate is None:
        if not seen.errors:
            return Verdict("not measured", "not measured yet")
        return Verdict("failed", f"failed here: {seen.errors[0]}")
    if claim.figure is None:
        return Verdict("no figure", "there is no figure to compare with; this fills it")
    low, high, figure = seen.estimate.low, seen.estimate.high, claim.figure
    if claim.rule == "below":
        worst = seen.worst if seen.worst is not None else high
        if worst < figure:
            return Verdict("holds", f"holds: the largest of {seen.count} is {short(worst / figure)} of the bound")
        many = short(worst / figure)
        return Verdict("does not hold", f"does not hold: the largest of {seen.count} is {many} times the bound")
    if claim.rule == "up to" and high + claim.half >= figure:
        return Verdict("holds", "holds: it is reached here")
    if low - claim.half <= figure <= high + claim.half:
        if claim.unit in ("×", "µs") and high > _WIDE * low:
            return Verdict(
                "undecided", f"undecided: the interval covers it, but its ends differ {short(high / low)} times"
            )
        return Verdict("agrees", "agrees: the interval covers it")
    if figure == 0:
        return Verdict("differs", "differs")
    times = short(seen.estimate.value / figure)
    if low < high:
        times += f" [{short(low / figure)}, {short(high / figure)}]"
    times += " times the claimed"
    if claim.rule == "up to":
        return Verdict("does not hold", f"not reached here: {times}")
    return Verdict("differs", f"differs: {times}{_direction(claim, seen.estimate)}")


def _direction(claim: Claim, estimate: Estimate) -> str:
    """Whether a ratio is on the side of 1 on which it was claimed to be."""
    if claim.unit != "×" or claim.figure in (None, 1.0):
        return ""
    if estimate.covers(1.0):
        return "; here it cannot be told from 1"
    same = (estimate.value > 1) == (claim.figure > 1)
    return "; on the same side of 1" if same else "; on the other side of 1"


def short(value: float) -> str:
    """Three significant digits, without an exponent where it can be read without."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def counted(number: int, one: str, several: str = "") -> str:
    """A number and its noun: `1 pair`, `2 pairs`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def milliseconds(value: float) -> str:
    """Milliseconds to three significant digits."""
    return f"{short(value)} ms"
