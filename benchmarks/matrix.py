"""The feature table: what each backend can do, as it came out of the conformance kit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters import CAPABILITIES, BackendNotInstalledError, backends, load_backend
from crosslens.adapters.conformance.outcomes import SHIPPED, Outcomes, load

from .environment import library_version
from .render import escape_latex
from .store import to_json

MARKS = {"supported": "yes", "most": "most", "notimpl": "not yet", "upstream": "no", "never": "-"}
LEGEND = {
    "supported": "every check that needs it passed",
    "most": "the same, but for some families",
    "notimpl": "the library could; the adapter does not yet",
    "upstream": "the library cannot",
    "never": "it makes no sense there",
}
_LATEX = {
    "supported": r"$\bullet$",
    "most": r"$\bullet^*$",
    "notimpl": r"$\circ$",
    "upstream": r"$\times$",
    "never": "--",
}


@dataclass(frozen=True)
class Backend:
    """One column of the table.

    Args:
        name: of the backend.
        library, version: what is installed; None where it is not.
        outcomes: what came of the kit; None where it was never kept, as for a backend of somebody else's.
        problem: why the backend cannot be used here, empty where it can.
    """

    name: str
    library: str | None
    version: str | None
    outcomes: Outcomes | None
    problem: str = ""


def matrix(folder: Path | None = None) -> list[Backend]:
    """Every registered backend with its kept outcomes.

    Args:
        folder: where `crosslens check NAME --save FOLDER` wrote them; None for those that crosslens comes with.

    Raises:
        InputError: an outcome that cannot be read.
    """
    found = []
    for name in backends():
        library, problem = None, ""
        try:
            library = load_backend(name).library or "torch"
        except BackendNotInstalledError as error:
            problem = str(error)
        except Exception as error:  # a library that is there and broken may raise anything
            problem = f"{name} cannot be imported: {type(error).__name__}: {error}"
        version = library_version(library) if library else None
        found.append(Backend(name, library, version, load(name, folder or SHIPPED), problem))
    return found


def reasons(columns: list[Backend]) -> list[str]:
    """Why each cell that is not `supported` is not; equal reasons of one backend in one line."""
    lines = []
    for column in columns:
        by_reason: dict[tuple[str, str, str | None], list[str]] = {}
        for name, proof in column.outcomes.capabilities.items() if column.outcomes else ():
            if proof.state != "supported":
                by_reason.setdefault((proof.state, proof.reason, proof.issue), []).append(name)
            for family, reason in proof.gaps.items():
                by_reason.setdefault((f"in {family}", reason, None), []).append(name)
        for (state, reason, issue), names in by_reason.items():
            shown = ", ".join(names) if len(names) < 6 else f"{', '.join(names[:3])} and {len(names) - 3} more"
            lines.append(f"{column.name}, {shown} ({state}): {reason}{f' {issue}' if issue else ''}")
    return lines


def state(column: Backend, capability: str) -> str | None:
    """State of one cell, or `most`; None where no kit was kept, or an older one that did not know the capability."""
    proof = column.outcomes.capabilities.get(capability) if column.outcomes else None
    return None if proof is None else "most" if proof.gaps and proof.state == "supported" else proof.state


def as_json(columns: list[Backend]) -> str:
    """Everything, with the number of checks behind every cell."""
    return to_json([asdict(column) for column in columns], indent=2) + "\n"


def markdown(columns: list[Backend]) -> str:
    """A table, a legend, and the reasons."""
    checked = [column for column in columns if column.outcomes]
    head = ["capability", *(f"{c.name} {c.outcomes.version}" for c in checked if c.outcomes)]
    lines = [_row(head), _row(["---", *[":-:"] * len(checked)])]
    lines += [_row([name, *(_mark(MARKS, c, name) for c in checked)]) for name in CAPABILITIES]
    lines.append(_row(["checks passed", *(str(c.outcomes.passed) for c in checked if c.outcomes)]))
    lines.append(_row(["failed as they must", *(str(c.outcomes.xfailed) for c in checked if c.outcomes)]))
    legend = "; ".join(f"{MARKS[name]}: {meaning}" for name, meaning in LEGEND.items())
    return "\n".join([*lines, "", legend + ".", "", *(f"- {line}" for line in reasons(columns))]) + "\n"


def summary(columns: list[Backend]) -> str:
    """One row a backend, as the README shows it."""
    lines = [_row(["backend", "library", "capabilities", "checks passed", "failed as they must", "CPU s"])]
    lines.append(_row(["---", "---", *["--:"] * 4]))
    for column in columns:
        if (kept := column.outcomes) is None:
            continue
        able = sum(state(column, name) in ("supported", "most") for name in CAPABILITIES)
        counts = [f"{able} of {len(CAPABILITIES)}", kept.passed, kept.xfailed, round(kept.cpu_seconds)]
        lines.append(_row([f"`{column.name}`", f"{kept.library} {kept.version}", *counts]))
    return "\n".join(lines) + "\n"


def latex(columns: list[Backend]) -> str:
    """A booktabs table with upright marks and turned headers; needs booktabs and graphicx."""
    checked = [column for column in columns if column.outcomes]
    heads = [rf"\rotatebox{{90}}{{{escape_latex(f'{c.name} {c.outcomes.version}')}}}" for c in checked if c.outcomes]
    lines = [rf"\begin{{tabular}}{{l{'c' * len(checked)}}}", r"\toprule"]
    lines += [" & ".join(["", *heads]) + r" \\", r"\midrule"]
    lines += [
        " & ".join([rf"\texttt{{{escape_latex(name)}}}", *(_mark(_LATEX, c, name) for c in checked)]) + r" \\"
        for name in CAPABILITIES
    ]
    lines += [r"\midrule", " & ".join(["checks passed", *(str(c.outcomes.passed) for c in checked if c.outcomes)])]
    lines[-1] += r" \\"
    lines += [r"\bottomrule", r"\end{tabular}"]
    legend = "; ".join(f"{_LATEX[name]} {meaning}" for name, meaning in LEGEND.items())
    return "\n".join([*lines, f"% {legend}", *(f"% {line}" for line in reasons(columns))]) + "\n"


FORMATS: Mapping[str, Callable[[list[Backend]], str]] = {"md": markdown, "latex": latex, "json": as_json}


def _mark(marks: Mapping[str, str], column: Backend, capability: str) -> str:
    found = state(column, capability)
    return marks[found] if found else "?"


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
