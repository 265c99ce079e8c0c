"""A run's folder as one page that needs nothing else: `crosslens report DIR -o report.html`.

The page is a function of the folder and of this version's programs: the same bytes each time. Nothing in it comes from
the network, and no text of the run is ever markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosslens.adapters import InputError
from crosslens.benchmarks.store import StoredRun, read_run
from crosslens.benchmarks.studies import STUDIES
from crosslens.benchmarks.summary import every_table
from crosslens.benchmarks.tables import Table
from crosslens.tasks.page import to_script
from crosslens.tasks.parts import replace_file

from .blocks import Block, Heat, Section, listing, paragraph
from .charts import swatch
from .headline import headline
from .programs import Programs
from .results import asked, environment, every_cell, glance, overhead, tasks
from .studies import sections


def write_report(folder: Path, out: Path) -> int:
    """Write the page of a run; an existing file is replaced at once or not at all. Returns its bytes.

    Args:
        folder: of a run.
        out: a file; its folder must exist.

    Raises:
        InputError: no run is there, a file of it is damaged, or `out` cannot be written; nothing is written then.
    """
    if out.is_dir():
        raise InputError(f"-o {out} is a folder; name a file, such as {out / 'report.html'}")
    if not out.absolute().parent.is_dir():
        raise InputError(f"-o {out} cannot be written: there is no folder {out.absolute().parent}")
    text = report(folder).encode("utf-8", "replace")  # half a surrogate pair, of a text that was cut
    try:
        replace_file(out, text)
    except OSError as error:
        raise InputError(f"-o {out} cannot be written: {error}") from error
    return len(text)


def report(folder: Path) -> str:
    """The page of a run as HTML.

    Args:
        folder: of a run, finished or not, with or without studies; what it lacks is left out, and a line says so.

    Raises:
        InputError: no run is there, or a file of it is damaged; says which.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    run = read_run(folder)
    programs = Programs()
    name = folder.resolve().name
    parts = _sections(run, folder, programs)
    heats = [block for part in parts for block in part.blocks if isinstance(block, Heat)]
    loader = ChoiceLoader([PackageLoader("crosslens.benchmarks"), PackageLoader("crosslens.tasks")])
    page = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html")
    data = {"heats": [heat.data() for heat in heats], "programs": programs.texts}
    return page.render(title=f"crosslens: {name}", parts=parts, data=to_script(data), swatch=swatch)


def _sections(run: StoredRun, folder: Path, programs: Programs) -> list[Section]:
    everything = every_table(run)
    rendered = [table for table in everything if isinstance(table, Table)]
    studied, absent = sections(folder, programs)
    overview: list[Block] = [*asked(run), *headline(run, rendered, folder)]
    seen = glance(run, rendered, programs)
    overview += [seen] if seen else [paragraph("No cell of a backend has finished: there is no table yet.")]
    found = [overhead(rendered), tasks(everything)]
    absent_lines = ["What a call costs: no cell of this run was timed."] if found[0] is None else []
    absent_lines += [f"{name}: {STUDIES[name].about}. {_how(name, folder)}" for name in absent]
    if absent_lines:
        overview += [paragraph("Not in this run:"), listing(absent_lines)]
    present = [section for section in found if section is not None]
    return [Section("overview", "Overview", overview), *present, *studied, every_cell(run), environment(run)]


def _how(name: str, folder: Path) -> str:
    return f"To measure it: python -m crosslens.benchmarks.{name} --out {folder.name}/studies/{name}.md"


__all__: Sequence[str] = ["report", "write_report"]
