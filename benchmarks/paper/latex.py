"""Pieces of LaTeX: escaped texts, numbers, lists in words, tables with their captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..render import escape_latex

NAMES = {
    "hooks": "plain hooks",
    "transformer_lens": "TransformerLens",
    "transformer-lens": "TransformerLens",
    "tdhook": "TDHook",
    "torchlens": "TorchLens",
    "inseq": "Inseq",
    "captum": "Captum",
    "torch": "PyTorch",
}
"""How the paper writes what the results call otherwise."""

_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def name(library: str) -> str:
    """How the paper writes a library; `crosslens (nnsight)` and `crosslens nnsight` keep their first word."""
    first, _, rest = library.partition(" ")
    if first == "crosslens" and rest:
        return f"crosslens, {name(rest.strip('()'))}"
    return escape_latex(NAMES.get(library, library))


def words(count: int) -> str:
    """A count in prose: a word up to twelve, else digits with thousands apart."""
    return _SMALL[count] if 0 <= count < len(_SMALL) else f"{count:,}"


def counted(number: int, what: str, more: str) -> str:
    """Such as `three processes`; `more` is what several add to the word."""
    return f"{words(number)} {what}{'' if number == 1 else more}"


def listed(parts: Iterable[str], joint: str = "and") -> str:
    """Such as `a, b and c`."""
    found = list(parts)
    if len(found) < 2:
        return "".join(found)
    return f"{', '.join(found[:-1])} {joint} {found[-1]}"


def extent(values: Iterable[int]) -> str:
    """Such as `7 to 17`, or `7` where all are the same."""
    found = sorted(values)
    return f"{found[0]}" if found[0] == found[-1] else f"{found[0]} to {found[-1]}"


def significant(value: float, digits: int = 3) -> str:
    """Such as `0.0123`, `1.23`, `123` and `1.2e-07` as a power of ten."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits}g}'):,.10g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${mantissa}\cdot10^{{{int(exponent)}}}$"


def signed(value: float, digits: int = 1) -> str:
    """With a sign of its own width."""
    return f"${value:+.{digits}f}$"


def tabular(columns: str, head: Sequence[str], *groups: Sequence[Sequence[str]], above: str = "") -> str:
    """A booktabs table; a rule between groups.

    Args:
        columns: of LaTeX, such as `lrr`.
        head: titles, already LaTeX.
        groups: rows, already LaTeX.
        above: a line over the titles.
    """
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [above] if above else []
    lines += [" & ".join(head) + r" \\"]
    for group in groups:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def floating(
    label: str, caption: str, body: str, *, wide: bool = False, size: str = "footnotesize", gap: int = 4
) -> str:
    """A table that stands alone: caption above, body centred.

    Args:
        label: without `tab:`.
        caption, body: LaTeX.
        wide: over both columns.
        size: of its letters.
        gap: half the room between columns, points.
    """
    kind = "table*" if wide else "table"
    return "\n".join([
        rf"\begin{{{kind}}}[tp]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{label}}}",
        rf"\{size}\setlength{{\tabcolsep}}{{{gap}pt}}", body, rf"\end{{{kind}}}", "",
    ])  # fmt: skip
