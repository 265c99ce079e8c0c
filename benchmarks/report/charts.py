"""Drawings as inline SVG, written by hand: intervals on a ratio scale, and curves with intervals.

A plotting library in the page would weigh more than a whole report (plotly: 4.5 MB) and would need its script to print;
matplotlib's SVG has fixed colours and fonts. These take their colours from the page's style sheet, so that one drawing
serves light, dark and paper, and their text can be read out and searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from crosslens.benchmarks.estimate import Estimate

from .blocks import element

SERIES = 12
"""How many series have a colour and a dash of their own; more of them begin again."""
_LABEL = 20  # characters that have room beside a line
_MARKS = ("circle", "square", "diamond", "up")


@dataclass(frozen=True)
class Interval:
    """A line of a chart of intervals; where there is no figure, `instead` says why.

    Attributes:
        reference: drawn apart, as what the others are held to.
        other: a second figure on the same line, with its interval, such as what somebody else says that it is.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    instead: str = ""
    reference: bool = False
    other: tuple[float, float | None, float | None] | None = None

    @classmethod
    def of(cls, label: str, found: Estimate | None, other: Estimate | None = None, **more: Any) -> Interval:
        """Of an estimate, and of a second one."""
        beside = None if other is None else (other.value, other.low, other.high)
        if found is None:
            return cls(label, None, other=beside, **more)
        return cls(label, found.value, found.low, found.high, other=beside, **more)

    @property
    def figures(self) -> list[float]:
        """All of them, for the ends of an axis."""
        return [v for v in (self.value, self.low, self.high, *(self.other or ())) if v is not None]


Point = tuple[float, float, float | None, float | None]
"""x, y and the interval of y."""


def span(values: Sequence[float], least: float = 1.02) -> tuple[float, float]:
    """The ends of a logarithmic axis that holds all values and 1, with room on both sides."""
    low, high = min([1 / least, *values]), max([least, *values])
    room = (high / low) ** 0.04
    return low / room, high * room


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round figures of a logarithmic axis: powers of 10, halves of them, or equal steps where it is short."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**k for k in range(first, last + 1) for f in factors if low <= f * 10.0**k <= high]
        if 3 <= len(found) <= most:
            return found
    if high / low > 30:  # more decades than there is room for
        every = math.ceil((last - first + 1) / most)
        return [10.0**k for k in range(first, last + 1, every) if low <= 10.0**k <= high]
    return even(low, high, most)


def even(low: float, high: float, most: int = 6) -> list[float]:
    """Round figures of a linear axis."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def intervals(title: str, rows: Sequence[Interval], axis: tuple[float, float], unit: str) -> Markup:
    """One line for each row: its figure and interval on a logarithmic axis, with a rule at 1.

    Labels stand beside their lines, or above them where one is long.

    Args:
        axis: ends of the axis, as of `span`; charts beside one another share it.
        unit: what the figures are.
    """
    stacked = any(len(row.label) > _LABEL for row in rows)
    width, left, right, row_height, top = 400.0, 12.0 if stacked else 128.0, 50.0, 38.0 if stacked else 20.0, 28.0
    bottom = top + row_height * len(rows)
    low, high = axis

    def x(value: float) -> float:
        return left + (width - left - right) * math.log(value / low) / math.log(high / low)

    parts = [element("title", title), element("text", _cut(title, 44), class_="name", x=0.0, y=16)]
    for tick in ticks(low, high, most=5):
        parts.append(element("line", class_="grid", x1=x(tick), x2=x(tick), y1=top, y2=bottom))
        parts.append(element("text", _number(tick), class_="soft", x=x(tick), y=bottom + 14, text_anchor="middle"))
    if low < 1 < high:
        parts.append(element("line", class_="one", x1=x(1.0), x2=x(1.0), y1=top, y2=bottom))
    for i, row in enumerate(rows):
        y = top + row_height * (i + (0.75 if stacked else 0.5))
        if stacked:
            parts.append(element("text", _cut(row.label, 58), class_="label", x=2.0, y=y - 11))
        else:
            parts.append(element("text", row.label, x=left - 8, y=y + 4, text_anchor="end"))
        if row.other is not None:
            parts.append(_point(x, y + 3, row.label, row.other, "other"))
        if row.value is None:
            parts.append(element("text", row.instead, class_="soft", x=left + 6, y=y + 4))
            continue
        parts.append(_point(x, y, row.label, (row.value, row.low, row.high), "reference" if row.reference else "mark"))
        text = f"{row.value:.3f}" if row.value < 10 else f"{row.value:.1f}"
        parts.append(element("text", text, x=width - 2, y=y + 4, text_anchor="end"))
    parts.append(
        element("text", unit, class_="soft", x=(left + width - right) / 2, y=bottom + 30, text_anchor="middle")
    )
    return _picture(title, width, bottom + 36, parts)


def _point(
    x: Callable[[float], float], y: float, label: str, figure: tuple[float, float | None, float | None], kind: str
) -> Markup:
    value, low, high = figure
    inside = [element("title", f"{label}: {_interval_text(value, low, high)}")]
    if low is not None and high is not None:
        inside.append(element("line", class_="whisker", x1=x(low), x2=x(high), y1=y, y2=y))
    mark = element("path", d=_mark(2, x(value), y)) if kind == "other" else element("circle", cx=x(value), cy=y, r=3.6)
    return element("g", *inside, mark, class_=kind)


def curves(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_name: str,
    y_name: str,
    y_axis: tuple[float, float] | None = None,
    log_y: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> Markup:
    """Curves over a logarithmic x; intervals as whiskers, a little apart where they would lie on one another.

    Args:
        series: name -> points, in the order of x.
        y_axis: ends of the y axis; else those of the points.
        numbers: name -> which colour it has; else in order.
    """
    width, height, left, bottom, top = 400.0, 250.0, 54.0, 212.0, 28.0
    points = [point for found in series.values() for point in found]
    places = sorted({point[0] for point in points})
    seen = [v for _, y, a, b in points for v in (y, a, b) if v is not None and (v > 0 or not log_y)]
    y0, y1 = y_axis or _ends(seen, log_y)
    x0, x1 = places[0], places[-1]

    def x(value: float) -> float:
        share = math.log(value / x0) / math.log(x1 / x0) if x1 > x0 else 0.5
        return left + 14 + (width - left - 34) * share

    def y(value: float) -> float:
        share = math.log(max(value, y0) / y0) / math.log(y1 / y0) if log_y else (value - y0) / (y1 - y0)
        return bottom - (bottom - top) * min(1.0, max(0.0, share))

    parts = [element("title", title), element("text", title, class_="name", x=left, y=16)]
    for tick in ticks(y0, y1, 5) if log_y else even(y0, y1, 5):
        parts.append(element("line", class_="grid", x1=left, x2=width - 6, y1=y(tick), y2=y(tick)))
        parts.append(element("text", _number(tick), class_="soft", x=left - 6, y=y(tick) + 4, text_anchor="end"))
    for place in _apart(places, x, 26):
        parts.append(element("text", _number(place), class_="soft", x=x(place), y=bottom + 15, text_anchor="middle"))
    parts.append(element("text", x_name, class_="soft", x=(left + width) / 2, y=bottom + 32, text_anchor="middle"))
    parts.append(element("text", y_name, class_="soft", x=width - 6, y=16, text_anchor="end"))
    for i, (name, found) in enumerate(series.items()):
        number = i if numbers is None else numbers[name]
        shift = (i - (len(series) - 1) / 2) * min(3.0, 18 / max(1, len(series)))
        places_of = [(x(p[0]) + shift, p) for p in found]
        path = "M" + "L".join(f"{at:.1f} {y(p[1]):.1f}" for at, p in places_of)
        bars = "".join(
            f"M{at:.1f} {y(p[2]):.1f}V{y(p[3]):.1f}" for at, p in places_of if p[2] is not None and p[3] is not None
        )
        inside = [element("path", class_="curve", d=path)]
        if bars:
            inside.append(element("path", class_="whisker", d=bars))
        for at, p in places_of:
            told = f"{name}, {_number(p[0])}: {_interval_text(*p[1:])}"
            inside.append(element("path", element("title", told), class_="dot", d=_mark(number, at, y(p[1]))))
        parts.append(element("g", *inside, class_=f"s s{number % SERIES}"))
    return _picture(title, width, height, parts)


def swatch(number: int) -> Markup:
    """A stroke and mark of a series, for a legend."""
    inside = [element("path", class_="curve", d="M2 8H34"), element("path", class_="dot", d=_mark(number, 18, 8))]
    return element(
        "svg", element("g", *inside, class_=f"s s{number % SERIES}"), class_="swatch", viewBox="0 0 36 16", width=36,
        height=16, aria_hidden="true",
    )  # fmt: skip


def _picture(title: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    return element("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=title)


def _ends(seen: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(seen, default=0.0), max(seen, default=1.0)
    if log:
        return (low / 1.2, high * 1.2) if low > 0 else (0.1, 1.0)
    return (min(0.0, low), high if high > min(0.0, low) else low + 1)


def _apart(places: Sequence[float], x: Callable[[float], float], least: float) -> list[float]:
    """Those that have room for their label."""
    found: list[float] = []
    for place in places:
        if not found or x(place) - x(found[-1]) >= least:
            found.append(place)
    return found


def _mark(number: int, x: float, y: float) -> str:
    """A circle, square, diamond or triangle: series are told apart without their colours too."""
    shape = _MARKS[number % len(_MARKS)]
    if shape == "circle":
        return f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"
    if shape == "square":
        return f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"
    if shape == "diamond":
        return f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4-4.4z"
    return f"M{x:.1f} {y - 4:.1f}l4 7h-8z"


def _interval_text(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} ({low:.4g} to {high:.4g})"


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value >= 1e6 or 0 < value < 1e-3 else f"{value:g}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
