"""Studies of a run: run in their own process, kept once, rendered from what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from crosslens.adapters import InputError
from crosslens.benchmarks import studies
from crosslens.benchmarks.plan import make_plan
from crosslens.benchmarks.progress import Show
from crosslens.benchmarks.studies import STUDIES, missing, pages, run_studies, write_pages

from .drivers import gone
from .test_runner import RUN


def test_the_full_suite_has_all_of_them_unless_it_is_narrowed() -> None:
    assert make_plan("full").studies == tuple(STUDIES)
    assert make_plan("full", backend=["hooks"]).studies == ()
    assert make_plan("smoke", study=["residue", "residue"]).studies == ("residue",)
    with pytest.raises(InputError, match="no study 'residu'; there are idioms"):
        make_plan("smoke", study=["residu"])


class Told(Show):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, cell: str) -> None:
        self.lines.append(f"{cell} starts")

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        raise AssertionError("a study is a process of its own")

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self.lines.append(f"{cell} {status}" + (f": {reason}" if reason else ""))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds what studies run here, as NAME.sh, in place of their programs; $1 is the page."""
    popen = subprocess.Popen

    def stand_in(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        name = command[command.index("-m") + 1].removeprefix("crosslens.benchmarks.")
        reaper = command[: command.index("-P") - 1]
        started: subprocess.Popen[bytes] = popen([*reaper, "/bin/sh", str(tmp_path / f"{name}.sh"), command[-1]], **how)
        return started

    monkeypatch.setattr(studies.subprocess, "Popen", stand_in)
    monkeypatch.setattr(studies, "_AWAKE", 0.01)
    return tmp_path


def test_studies_that_time_something_are_alone_and_the_others_beside_one_another(programs: Path) -> None:
    # each says when it runs; those that time nothing wait for one another, so that one alone would never end
    for name, other in (("idioms", "claims"), ("claims", "idioms")):
        (programs / f"{name}.sh").write_text(
            f"touch {programs}/{name}; until [ -e {programs}/{other} ]; do :; done; : >$1"
        )
    for name in ("costs", "scaling"):
        (programs / f"{name}.sh").write_text("echo $OMP_NUM_THREADS; sleep 0.1; : >$1")
    told, folder = Told(), programs / "studies"
    assert run_studies(["costs", "idioms", "scaling", "claims"], folder, told, 2)
    assert told.lines[:2] == ["idioms starts", "claims starts"]
    assert sorted(told.lines[2:4]) == ["claims done", "idioms done"]
    assert told.lines[4:] == ["costs starts", "costs done", "scaling starts", "scaling done"]
    assert sorted(path.name for path in folder.iterdir()) == ["claims.md", "costs.md", "idioms.md", "scaling.md"]
    assert missing(["idioms", "residue"], folder) == ["residue"]


def test_one_that_leaves_no_page_is_told_with_what_it_printed_and_the_others_run(programs: Path) -> None:
    (programs / "idioms.sh").write_text("echo first; echo of no use >&2; exit 3")
    (programs / "claims.sh").write_text(": >$1; exit 1")
    told, folder = Told(), programs / "studies"
    assert not run_studies(["idioms", "claims"], folder, told, 1)
    assert told.lines[1] == (
        f"idioms failed: the process ended with 3 and left no page; {folder / 'idioms.log'} has what it printed, "
        "at last: first of no use"
    )
    assert told.lines[-1] == "claims done", "findings, which end a study with 1, are no error"
    (folder / "idioms.md").write_text("what there is of it, rendered by `crosslens tables`")
    (programs / "idioms.sh").write_text("[ ! -e $1 ] && : >$1")
    assert run_studies(missing(["idioms", "claims"], folder), folder, told, 1), "as --resume does"
    assert not (folder / "idioms.log").exists()


def test_a_study_does_not_outlive_what_stopped_the_run(programs: Path) -> None:
    class Interrupts(Told):
        def start(self, cell: str) -> None:
            raise KeyboardInterrupt

    (programs / "idioms.sh").write_text("echo $$; exec sleep 60")
    with pytest.raises(KeyboardInterrupt):
        run_studies(["idioms"], programs / "studies", Interrupts(), 1)
    printed = (programs / "studies" / "idioms.log").read_text()
    assert not printed or not psutil.pid_exists(int(printed))


def test_a_study_does_not_outlive_a_run_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "long.sh").write_text("echo begun; sleep 60")
    run = f"""
import subprocess
from pathlib import Path
from crosslens.benchmarks import studies
from tests.test_studies import Told
start, study = subprocess.Popen, ["/bin/sh", "{tmp_path}/long.sh"]
studies.subprocess.Popen = lambda command, **how: start([*command[: command.index("-P") - 1], *study], **how)
studies.run_studies(["idioms"], Path("{tmp_path}/studies"), Told(), 1)
"""
    root = str(Path(__file__).parents[1])
    driver = subprocess.Popen([sys.executable, "-c", run], env={**os.environ, "PYTHONPATH": root})
    log = tmp_path / "studies" / "idioms.log"
    try:
        while not (log.exists() and log.read_text()):
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert gone(tmp_path)
    assert missing(["idioms"], log.parent) == ["idioms"]


def test_a_folder_that_cannot_be_is_said(programs: Path) -> None:
    (programs / "studies").write_text("a file")
    with pytest.raises(InputError, match="cannot hold the study idioms"):
        run_studies(["idioms"], programs / "studies", Told(), 1)


@pytest.mark.parametrize("name", list(STUDIES))
def test_kept_pages_are_what_their_measurements_render_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    kept = f"{name}{STUDIES[name].kept}"
    (tmp_path / "studies" / kept).write_bytes((RUN / "studies" / kept).read_bytes())
    (written,) = write_pages(tmp_path)
    assert written.read_text() == (RUN / "studies" / f"{name}.md").read_text()


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "residue.json").write_text("{")
    with pytest.raises(InputError, match=r"residue.json cannot be read"):
        pages(tmp_path)
    (tmp_path / "studies" / "residue.json").write_text(json.dumps({"uses": 1}))
    with pytest.raises(InputError, match=r"residue.json cannot be read"):
        pages(tmp_path)


def test_every_study_is_a_program() -> None:
    for name in STUDIES:
        where = Path(studies.__file__).parent
        assert (where / f"{name}.py").exists() or (where / name / "__main__.py").exists()
