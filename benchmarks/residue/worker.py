"""One use in a process of its own, before and after compared: `python -m crosslens.benchmarks.residue.worker JOB.json`.

The model that a use gets is one whose state shows what is done to it: it is in training mode with one module in
evaluation mode, one parameter is frozen, one has a gradient, a hook of the user's counts its calls, and hidden states
have been asked for once.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import torch

from crosslens.tasks import load_model

from .behaviour import CountingHook, changed, outcomes, pickled
from .process import LiveTensors, Names, Writes, files, only_known, process_facts
from .snapshot import Difference, Facts, differences, model_facts, tokenizer_facts
from .uses import USES, ids_of

MODEL = "tiny-llama"
EXAMPLES = 3
"""Differences of one kind that are kept beside their number."""

_MB = 1 << 20


def prepared(model: Any, with_hook: bool = True) -> CountingHook:
    """Put a model into the state that the module's docstring tells of, and give the user's hook."""
    model.train()
    model.get_submodule("model.layers.2.mlp").eval()
    model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(False)
    weight = model.get_parameter("lm_head.weight")
    weight.grad = torch.ones_like(weight)
    hook = CountingHook()
    if with_hook:
        model.get_submodule("model.norm").register_forward_hook(hook)
    return hook


def facts(model: Any, tokenizer: Any, folder: Path) -> Facts:
    """All that is looked at without running anything."""
    return {**model_facts(model), **tokenizer_facts(tokenizer), **process_facts(), **files(folder)}


def measure(name: str, clean: bool, folder: Path) -> dict[str, Any]:
    """Use a library once, and say what is different afterwards.

    Args:
        name: of `USES`.
        clean: whether the documented clean-up is done.
        folder: an empty one, which holds the process's home, temporary and working folders.
    """
    use = USES[name]
    torch.manual_seed(0)
    model, tokenizer = load_model(MODEL)
    hook = prepared(model, use.hooks)
    # `fresh` is never asked for hidden states: transformers' hooks for them, once installed, cannot be pickled
    fresh, twin, first = (copy.deepcopy(model) for _ in range(3))
    ids = torch.arange(3, 11)[None]
    was = outcomes(model if use.hooks else first, tokenizer, ids, hook, twin) | pickled(fresh, ids)
    for each in (model, fresh):
        (use.anyway or forward)(each, tokenizer)
    names, before, tensors = Names.taken(), facts(model, tokenizer, folder), LiveTensors.taken()
    resident, written = psutil.Process().memory_info().rss, Writes()

    held = use.run(model, tokenizer, clean)
    del held
    gc.collect()
    found = differences(before, only_known(before, facts(model, tokenizer, folder))) + names.changed()
    outside = {path for path in written.left() if not Path(path).is_relative_to(folder.resolve())}
    found += [Difference("machine", "files", path, "not written", "written") for path in sorted(outside)]
    count, size = tensors.new(model)
    kept = psutil.Process().memory_info().rss - resident
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        held = use.run(fresh, copy.deepcopy(tokenizer), clean)
        del held
    found += changed(was, outcomes(model, tokenizer, ids, hook, twin) | pickled(fresh, ids))
    return {
        "differences": grouped(found),
        "figures": {"tensors kept": count, "bytes of tensors kept": int(size), "resident MB kept": kept / _MB},
    }


def grouped(found: list[Difference]) -> list[dict[str, Any]]:
    """Differences of one kind together, with their number and the first few."""
    kinds: dict[tuple[str, str], list[Difference]] = {}
    for each in found:
        kinds.setdefault((each.group, each.kind), []).append(each)
    return [
        {
            "group": group,
            "kind": kind,
            "count": len(of_kind),
            "examples": [
                {"place": each.place, "before": each.before, "after": each.after} for each in of_kind[:EXAMPLES]
            ],
        }
        for (group, kind), of_kind in kinds.items()
    ]


def forward(model: Any, tokenizer: Any) -> None:
    """What every program does with a model."""
    with torch.no_grad():
        model(ids_of(tokenizer))


def importing(name: str) -> dict[str, Any]:
    """CPU seconds and resident MB of importing a library after PyTorch and transformers."""
    import transformers  # noqa: F401

    process = psutil.Process()
    gc.collect()
    resident, modules, start = process.memory_info().rss, len(sys.modules), time.process_time()
    if USES[name].imports:
        importlib.import_module(USES[name].imports)
    return {
        "seconds": time.process_time() - start,
        "MB": (process.memory_info().rss - resident) / _MB,
        "modules": len(sys.modules) - modules,
    }


def main() -> None:
    """Do what a file asks for, and write what came of it beside it."""
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    try:
        if job["what"] == "import":
            found = importing(job["name"])
        else:
            found = measure(job["name"], job["clean"], Path(job["folder"]))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}".partition("\n")[0], "trace": traceback.format_exc()}
    job_file.with_suffix(".found").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
