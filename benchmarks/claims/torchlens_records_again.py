"""torchlens 2.36.1: a `Recorder` that selects a module keeps earlier records again at every call.

Claim: after n calls of `log` there are n (n + 1) / 2 records for one module; a selector of a function gives n.
Documentation followed: documentation of `torchlens.fastlog.Recorder`.
Right: select by `tl.func`, or make a recorder for each call. Through crosslens each run gives its own captures.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
import torchlens as tl
from torch import nn
from torchlens.fastlog import Recorder


def main() -> dict[str, Any]:
    """Log one module in five calls; `holds` where there are more than five records."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4)
    with Recorder(model, save=tl.module("0")) as recorder:
        for _ in range(5):
            recorder.log(inputs)
    records = len(list(recorder.recording))
    return {
        "claim": "a Recorder of a module keeps n (n + 1) / 2 records of n calls",
        "library": "torchlens",
        "version": version("torchlens"),
        "upstream": "not found upstream",
        "observed": {"records of 5 calls": records},
        "expected": {"records of 5 calls": 5},
        "holds": records == 15,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
