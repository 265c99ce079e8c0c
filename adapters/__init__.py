"""One Inspector interface over the interpretability libraries.

    from crosslens.adapters import open_inspector, replace

    with open_inspector("hooks", model, tokenizer=tok) as lens:
        run = lens.run("The capital of France is", capture=["blocks.*.resid_post"])

Importing this package imports no backend library: each is loaded when it is opened.
"""

from .attribution import Attribution, Target
from .capabilities import CAPABILITIES, Support
from .edits import Edit, add, apply, replace, scale, zero
from .errors import (
    BackendNotInstalledError,
    ClosedError,
    CrosslensError,
    EditError,
    InputError,
    ModelError,
    SiteError,
    UnsupportedError,
)
from .families import Address, Family
from .family_check import check_family
from .family_draft import draft_family
from .inspector import Inspector
from .recording import Recording
from .registry import backends, load_backend, open_inspector
from .run import Generation, Run
from .sites import Site

__all__ = [
    "CAPABILITIES",
    "Address",
    "Attribution",
    "BackendNotInstalledError",
    "ClosedError",
    "CrosslensError",
    "Edit",
    "EditError",
    "Family",
    "Generation",
    "InputError",
    "Inspector",
    "ModelError",
    "Recording",
    "Run",
    "Site",
    "SiteError",
    "Support",
    "Target",
    "UnsupportedError",
    "add",
    "apply",
    "backends",
    "check_family",
    "draft_family",
    "load_backend",
    "open_inspector",
    "replace",
    "scale",
    "zero",
]
