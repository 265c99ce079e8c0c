"""The page of the stories: a pure function of stories.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = """# Three stories

Printed by `python -m crosslens.benchmarks.stories`: each program of `examples/` was run in a process of its own, with
one thread, and what it printed stands below it."""


def markdown(kept: Mapping[str, Any]) -> str:
    """Each program, and what it printed.

    Args:
        kept: environment, and stories: by name, with program, output and seconds.
    """
    machine = kept["environment"]
    versions = machine["versions"]
    parts = [f"{_HEAD} {machine['cpu']}, torch {versions['torch']}, transformers {versions['transformers']}."]
    for name, story in kept["stories"].items():
        parts += [
            f"## {name.replace('_', ' ')}",
            f"```python\n{story['program'].strip()}\n```",
            f"In {story['seconds']:.0f} s it printed:",
            f"```\n{story['output'].rstrip()}\n```",
        ]
    return "\n\n".join(parts) + "\n"
