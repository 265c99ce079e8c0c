"""Values out of comgra's files; it counts as set-up of each program that imports it.

comgra shows what it recorded in pages of its own and has no reader; this reads its files with its own functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import torch
from comgra.utilities import PseudoDb
from torch import Tensor


def neurons(folder: Path, name: str, kind: str = "forward") -> Tensor:
    """(sample, ...) every value of a registered tensor, of the last iteration."""
    found: dict[int, dict[tuple[int, tuple[int, ...]], float]] = {}
    for path in sorted(Path(folder).glob("group/trials/trial/recordings/*/*")):
        content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
        for key, held in PseudoDb([]).deserialize(content).record_set.items():
            if key[1] == kind and key[2].startswith("Sample") and key[4] == f"node__{name}" and key[7] == "neuron":
                place: Any = (int(key[2].split()[1]), tuple(int(axis) for axis in str(key[8]).split(", ")))
                found.setdefault(key[3], {})[place] = held["val"]
    last = found[max(found)]
    samples, places = zip(*last, strict=True)
    shape = [max(samples) + 1, *(max(axis) + 1 for axis in zip(*places, strict=True))]
    return torch.tensor([last[key] for key in sorted(last)]).reshape(shape)
