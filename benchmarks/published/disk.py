"""How much room a distribution and all that it requires takes here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@cache
def megabytes(name: str) -> float:
    """Size in MB of the installed files of a distribution and of everything that it requires, without extras.

    Raises:
        ValueError: it is not installed.
    """
    waiting, seen, total = [name], set[str](), 0
    while waiting:
        wanted = canonicalize_name(waiting.pop())
        if wanted in seen:
            continue
        seen.add(wanted)
        try:
            found = distribution(wanted)
        except PackageNotFoundError as error:
            if wanted == canonicalize_name(name):
                raise ValueError(f"{name} is not installed") from error
            continue  # required, and not there: it has no size here
        total += _bytes(found)
        for each in map(Requirement, found.requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.append(each.name)
    return total / 1e6


def _bytes(found: Distribution) -> int:
    total = 0
    for file in found.files or ():
        try:
            total += file.size if file.size is not None else Path(str(file.locate())).stat().st_size
        except OSError:
            continue  # listed and not there, such as a compiled file
    return total
