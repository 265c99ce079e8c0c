"""Memory of this process: resident, and on a GPU; now, at its peak, and at its peak since a moment."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak resident memory over the process, and over the part of it since `mark()`.

    Linux can forget a high-water mark, and so tell the peak of a part; elsewhere only the whole is known.
    """

    def __init__(self) -> None:
        self._before = 0  # peak before the last mark

    def mark(self) -> bool:
        """Start a part; False where the system cannot tell the peak of a part."""
        self._before = max(self._before, _high_water())
        try:
            _CLEAR.write_text("5")
        except OSError:
            return False
        return True

    def since_mark(self) -> int:
        """Bytes: the peak since `mark()`, where that returned True."""
        return _high_water()

    def whole(self) -> int:
        """Bytes: the peak of the process so far."""
        return max(self._before, _high_water())


def resident() -> int:
    """Bytes resident now."""
    return int(psutil.Process().memory_info().rss)


def device_memory() -> dict[str, int]:
    """`device_peak_bytes`: the most that PyTorch has held on the GPU since `mark_device`, or since it began.

    Nothing where this process uses none.
    """
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    return {"device_peak_bytes": torch.cuda.max_memory_allocated()}


def mark_device() -> None:
    """Let `device_memory` speak of what is held now and from here on."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def _high_water() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
