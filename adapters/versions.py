"""Whether the installed version of a backend's library is one that the backend is tested with."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


class UntestedVersionWarning(UserWarning):
    """The installed version of a library lies outside the range that its backend is tested with."""


@cache  # once for each backend in a process
def warn_if_untested(entry: EntryPoint, library: str) -> None:
    """Warn if `library` is installed in a version that the distribution behind `entry` does not ask for."""
    tested = _asked_for(entry, library)
    try:
        installed = version(library)
        untested = tested is not None and not tested.specifier.contains(Version(installed), prereleases=True)
    except (PackageNotFoundError, InvalidVersion):  # a checkout on the path, say: nothing to compare
        return
    if untested:
        assert tested is not None
        warnings.warn(
            f"{library} {installed} is installed; backend {entry.name!r} is tested with {library} {tested.specifier}. "
            f"`crosslens check {entry.name}` shows whether it works; or pip install '{library}{tested.specifier}'",
            UntestedVersionWarning,
            stacklevel=4,
        )


def _asked_for(entry: EntryPoint, library: str) -> Requirement | None:
    """What the distribution that registers a backend says of its library, in any extra."""
    for text in (entry.dist.requires if entry.dist else None) or ():
        found = Requirement(text)
        if canonicalize_name(found.name) == canonicalize_name(library) and found.specifier:
            return found
    return None
