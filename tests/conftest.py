"""What every test starts from: one thread (workers share the cores), no model hub, no deadlines."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("crosslens", deadline=None, print_blob=True)
settings.load_profile("crosslens")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if any test was skipped, as for want of a library")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest first, torchlens' kit: what one worker is left with at the end, the others can take over."""
    items.sort(key=lambda item: "torchlens" not in item.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is installed, a skipped test is one that somebody believes to have passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if session.config.getoption("--no-skips") and skipped:
        reporter.write_line(f"--no-skips: {len(skipped)} tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
