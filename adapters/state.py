"""What a call must leave in the process as it found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def contained(device: torch.device) -> Iterator[None]:
    """Random state and grad mode end as they began: a dropout mask drawn inside is the one the caller would draw."""
    cuda = device.type == "cuda"
    state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(device) if cuda else None
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
        torch.set_grad_enabled(grad)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """The random states of Python, numpy and PyTorch on the CPU end as they began: an import may draw from them."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
