"""The torchlens backend: that it is torchlens that runs, that its traps do not reach the user, and what only it does."""

from __future__ import annotations

import pytest

torchlens = pytest.importorskip("torchlens")

from torchlens.nn import functional as _absent  # type: ignore  # noqa
