"""What the files of a run hold, field by field, and the check of what is read; `store.py` says where each file lies.

A change of meaning or of what is required raises FORMAT. Fields beside these are kept and not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from crosslens.adapters import InputError

FORMAT = 2

Number = float | Literal["nan", "inf", "-inf"]
"""JSON has no others; `float()` reads them all."""
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
Status = Literal[
    "right", "done", "wrong", "vacuous", "unsupported", "failed", "crashed", "timeout", "out-of-memory", "not-installed"
]
_STRICT = ConfigDict(strict=True, extra="allow")


@with_config(_STRICT)
class Known(TypedDict):
    """What is known of a reference, and whether it was found."""

    fact: str
    found: str
    holds: bool


@with_config(_STRICT)
class Score(TypedDict):
    """A result held to its reference; see `crosslens.tasks.base.Score`."""

    max_abs_error: Number
    max_rel_error: Number
    rank_agreement: Number
    effect: Number
    noise: Number
    right: bool


@with_config(_STRICT)
class CellLine(TypedDict):
    """A line of cells.jsonl."""

    id: Name  # unique, and a file name
    kind: Literal["reference", "backend"]
    backend: str | None  # None: the reference
    task: Name
    model: Name
    repeat: NotRequired[Annotated[int, Field(ge=1)]]
    status: Status
    reason: NotRequired[str | None]  # why it is not right
    figures: dict[str, Number]  # seconds (`*_s`) and bytes (`*_bytes`)
    samples: Count  # rows of samples.parquet
    files: dict[str, str]  # suffix -> SHA-256 of results/ID.suffix
    seconds: NotRequired[Number]  # of the process, its start and end included
    started: NotRequired[str]  # ISO 8601, UTC
    stage: NotRequired[str | None]  # the last that began
    headline: NotRequired[str]
    known: NotRequired[Known]
    score: NotRequired[Score]
    timing: NotRequired[dict[str, Count]]  # blocks, calls of a sample, warm-up calls
    library: NotRequired[str]
    version: NotRequired[str | None]  # of the library; None: it is not installed
    load: NotRequired[Number]  # of the machine when it started, mean of a minute
    traceback: NotRequired[str]
    log: NotRequired[list[str]]  # the last that the process printed
    node: NotRequired[dict[str, Any]]  # of a cluster, where it ran: id, cpu, cores
    tries: NotRequired[Annotated[int, Field(ge=1)]]  # where more than one, since nodes were lost
    no_hooks: NotRequired[str]  # why native hooks could not be timed beside it


@with_config(_STRICT)
class Environment(TypedDict, total=False):
    """What `environment.py` finds; said there."""

    python: str
    platform: str
    cpu: str
    cores: dict[str, int | None]
    memory_bytes: Count
    load_average: list[Number]
    versions: dict[str, str | None]
    packages: dict[str, str]
    git: dict[str, str | bool] | None
    source: str
    governor: str | None
    gpus: list[dict[str, str]]
    variables: dict[str, str]


@with_config(_STRICT)
class Facts(TypedDict):
    """run.json."""

    format: int
    started: NotRequired[str]  # ISO 8601, UTC
    resumed: NotRequired[list[str]]  # when it was gone on with
    executor: NotRequired[Literal["local", "ray"]]
    arguments: dict[str, Any]  # of `plan.Plan`: what is run, seeds, threads, limits
    environment: Environment
    random_models: list[str]  # names of models whose weights are random
    cells: list[Name]  # ids, all that the run is to have


SAMPLE_TYPES = {
    "cell": "str",
    "block": "int64",
    "order": "str",
    "bare_s": "float64",
    "hooks_s": "float64",
    "step_s": "float64",
}
"""Columns of samples.parquet."""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check(kind: Any, value: Any, where: str, what: str) -> None:
    """Raise unless a value has a TypedDict's fields, with their types.

    Args:
        where: file and line, for the error.
        what: what it should be, as "no cell", "damaged".

    Raises:
        InputError: names where, the field and what is wrong.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}, is {what}: {str(value)[:40]!r} is no object with fields")
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if missing := sorted(_field(value, e["loc"]) for e in found if e["type"] == "missing"):
            raise InputError(f"{where}, is {what}: it has no {', '.join(missing)}") from None
        name, held, says = _field(value, found[0]["loc"]), repr(found[0]["input"])[:60], found[0]["msg"]
        raise InputError(f"{where}, is {what}: field `{name}` is {held}; {says[:1].lower()}{says[1:]}") from None


def _field(value: Any, location: Sequence[str | int]) -> str:
    """A field's address, without the parts of it that name alternatives of a type."""
    parts: list[str] = []
    for number, part in enumerate(location, start=1):
        if isinstance(value, dict) and (part in value or number == len(location)):
            parts.append(str(part))
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            parts.append(str(part))
            value = value[part]
    return ".".join(parts)


def check_samples(frame: pd.DataFrame, path: Path) -> None:
    """Raise unless the columns of samples.parquet are there, with their types, and hold what seconds can be.

    Raises:
        InputError: names the column.
    """
    if missing := set(SAMPLE_TYPES) - set(frame.columns):
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}")
    is_kind = {
        "str": pd.api.types.is_string_dtype,
        "int64": pd.api.types.is_integer_dtype,
        "float64": pd.api.types.is_float_dtype,
        "bool": pd.api.types.is_bool_dtype,
    }
    for name, kind in SAMPLE_TYPES.items():
        if len(frame) and not is_kind[kind](frame[name]):
            raise InputError(f"{path}: column {name} holds {frame[name].dtype}, not {kind}")
        if name.endswith("_s") and (bad := frame.index[frame[name] < 0]).size:
            raise InputError(f"{path}, row {bad[0]}: {name} is {frame[name][bad[0]]}, less than no time")
    if (twice := frame.duplicated(["cell", "block"])).any():
        row = frame[twice].iloc[0]
        raise InputError(f"{path} has block {row['block']} of cell {row['cell']!r} twice")
