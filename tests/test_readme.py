"""The README's tables and figures are those of the newest run in results/."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from crosslens.adapters import InputError
from crosslens.benchmarks.paper.sources import read
from crosslens.benchmarks.readme import BLOCKS, main, plain, rendered

from .test_runner import ROOT, RUN

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_block_is_what_the_run_renders_to() -> None:
    assert all(f"<!-- from results: {name} -->" in README for name in BLOCKS)
    assert rendered(README, read(RUN)) == README, "python -m crosslens.benchmarks.readme"


def test_a_figure_that_was_typed_over_is_found_and_put_right(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "README.md"
    head = "<!-- from results: times -->\n"
    path.write_text(README.replace(head, f"{head}99 "), encoding="utf-8")
    arguments = ["--readme", str(path), "--results", str(RUN)]
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 1
    assert path.read_text(encoding="utf-8") != README
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert path.read_text(encoding="utf-8") == README
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 0


def test_a_block_of_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="has a block 'tiems'; there are times, "):
        rendered("<!-- from results: tiems -->\n<!-- end -->\n", read(RUN))


def test_what_macros_hold_of_latex_is_written_out() -> None:
    assert (
        plain(r"\texttt{blocks.\allowbreak 23.\allowbreak attn} $2\cdot10^{-5}$ 1\,\%") == "`blocks.23.attn` 2e-5 1 %"
    )
