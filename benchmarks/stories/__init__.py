"""What was hard and is now short: the programs of `examples/`, run, with what they printed and found.

`python -m crosslens.benchmarks.stories --out PAGE.md` runs each in a process of its own and keeps program, output and
the figures behind it. The paper and the README show them from what is kept.
"""

from __future__ import annotations

from .page import markdown

__all__ = ["markdown"]
