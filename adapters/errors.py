"""Every error that crosslens raises on purpose.

    CrosslensError
    ├── SiteError                 (ValueError)   a site that does not exist, or not here
    ├── EditError                 (ValueError)   an edit that does not fit its site
    ├── InputError                (ValueError)   inputs, options or files that cannot be used
    ├── UnsupportedError          (NotImplementedError)  the backend cannot do this, and says why
    ├── ModelError                (ValueError)   a model that cannot be found, fetched or understood
    ├── BackendNotInstalledError  (ImportError)  the backend's library is missing
    └── ClosedError               (RuntimeError) the inspector was used after `close()`

Each text says what is wrong, where, and what would be right.
"""

from __future__ import annotations


class CrosslensError(Exception):
    """Base of every error raised on purpose by crosslens."""


class SiteError(CrosslensError, ValueError):
    """A site name that cannot be parsed, matches nothing, or does not exist in this model."""


class EditError(CrosslensError, ValueError):
    """An edit whose selection, value, shape or dtype does not fit the site that it names."""


class InputError(CrosslensError, ValueError):
    """Inputs, an option, a file or a folder that cannot be used."""


class UnsupportedError(CrosslensError, NotImplementedError):
    """The backend cannot do what was asked; the text carries the state and the reason."""


class ModelError(CrosslensError, ValueError):
    """A model that cannot be found, fetched, loaded or understood."""


class BackendNotInstalledError(CrosslensError, ImportError):
    """The library behind a backend is not installed; the text names the extra to install."""


class ClosedError(CrosslensError, RuntimeError):
    """The inspector was used after `close()`."""
