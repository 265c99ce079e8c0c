"""One step into comgra's recorder, and the table back out of its files.

comgra is driven once a step is over, with copies: it sees no tensor of the caller's, and an error in the step never
reaches it. Its `iteration` is the call of a module; its `type_of_execution`, the category. What it cannot spell is
escaped so that it can be read back.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgpack
import torch
from comgra.objects import (
    DecisionMakerForRecordings,
    DecisionMakerForRecordingsFrequencyPerType,
    DecisionMakerForRecordingsHardcoded,
)
from comgra.recorder import ComgraRecorder
from comgra.utilities import PseudoDb
from torch import Tensor, nn

from .errors import InputError, UnsupportedError
from .snapshots import Gradients, Snapshot

if TYPE_CHECKING:
    import pandas as pd

When: TypeAlias = int | Collection[int] | Callable[[int, str], bool] | DecisionMakerForRecordings

_TYPES = {
    "step": "int64", "category": "str", "kind": "str", "site": "str", "call": "int64", "group": "str", "kpi": "str",
    "aggregate": "str", "sample": "Int64", "label": "str", "rows": "int64", "value": "float64",
}  # fmt: skip
COLUMNS = tuple(_TYPES)
_LONGEST = 200  # the category is part of a folder's name, and those have at most 255 bytes


class ComgraTrial:
    """One `ComgraRecorder`: the steps whose sites have one number of rows.

    Args:
        folder: of the recording.
        rows: of the tensors; comgra takes one batch size a step.
        per_sample: of how many samples figures are kept.
        svd: whether to take the largest singular value of parameters.
    """

    def __init__(self, folder: Path, rows: int, per_sample: int, svd: bool) -> None:
        self._rows = rows
        self._per_sample = per_sample
        self._recorder = ComgraRecorder(
            folder, f"rows-{rows}", "steps", _Always(), max_num_batch_size_to_record=max(per_sample, 1),
            calculate_svd_and_other_expensive_operations_of_parameters=svd,
        )  # fmt: skip
        self._recorder.track_module("none", nn.Module())  # it asks for one; parameters come as copies
        # where it writes, until a step is whole: a process that is killed leaves no half of one to be read
        self._done, self._part = self._recorder.recordings_path, self._recorder.trial_path / "part"
        self._recorder.recordings_path = self._part
        self._part.mkdir()

    def write(
        self, step: int, category: str, samples: list[str] | None, snapshots: list[Snapshot],
        parameters: list[Snapshot], losses: dict[str, Tensor], groups: dict[str, Gradients],
    ) -> None:  # fmt: skip
        """Put one step through comgra and onto disk, where `publish` shows it.

        Raises:
            UnsupportedError: comgra fails at it.
        """
        labels = samples if samples is not None and len(samples) == self._rows else [""] * self._rows
        try:
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")  # NaN, or comgra's 0: as documented
                self._drive(step, category, labels, snapshots, parameters, losses, groups)
        except (AssertionError, ValueError, RuntimeError, TypeError, RecursionError) as error:
            raise UnsupportedError(f"comgra fails at step {step}: {error!r}") from error

    def publish(self) -> None:
        """Show what was written to those who read."""
        for folder in self._part.iterdir():
            os.replace(folder, self._done / folder.name)

    def clean(self) -> None:
        """Ready for another step, whatever came of this one."""
        for folder in self._part.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        self._recorder.current_stage = "inactive"
        self._recorder.sanity_check__recursion_for_delayed_calls = False
        self._recorder._reset_caches()

    def _drive(
        self, step: int, category: str, labels: list[str], snapshots: list[Snapshot], parameters: list[Snapshot],
        losses: dict[str, Tensor], groups: dict[str, Gradients],
    ) -> None:  # fmt: skip
        recorder = self._recorder
        keep = self._per_sample > 0
        device = next((each.value.device for each in [*snapshots, *parameters]), None)  # of all of them
        recorder.start_batch(step, self._rows, None, record_all_tensors_per_batch_index_by_default=keep)
        for each in parameters:
            recorder.register_tensor(_quote(each.name), each.value, is_parameter=True)
        last = max((each.call for each in snapshots), default=0)
        for call in range(last + 1):
            recorder.start_iteration()
            for each in snapshots:
                if each.call == call:
                    recorder.register_tensor(_quote(each.name), each.value, recording_type="kpis")
            for name, value in losses.items() if call == 0 else ():
                recorder.register_tensor(_quote(f"loss:{name}"), value, is_loss=True)
            ends = [
                torch.zeros((), device=device) for _ in range(2)
            ]  # comgra refuses an iteration without a dependency
            for name, end in zip(("begin:", "end:"), ends, strict=True):
                recorder.register_tensor(name, end, is_loss=True)
            recorder.add_tensor_connection(*ends)
            if call == last:
                recorder.decide_recording_of_batch(category, labels)
                for group, grads in groups.items():
                    self._gradients(group, grads, [*parameters, *snapshots])
            recorder.finish_iteration()
        recorder.finish_batch()

    def _gradients(self, group: str, grads: Gradients, registered: Sequence[Snapshot]) -> None:
        """One group, of the tensors that have a gradient alone: comgra would store 0 for the others."""
        recorder = self._recorder
        for each in registered:
            each.value.grad = grads.get((each.name, each.call))
        everything = recorder.tensor_to_list_of_references
        recorder.tensor_to_list_of_references = {t: refs for t, refs in everything.items() if t.grad is not None}
        recorder.record_current_gradients(f"gradient:{group}")
        recorder.tensor_to_list_of_references = everything


def read_table(folder: str | Path) -> pd.DataFrame:
    """The figures of a recording, from comgra's files: one figure a row, in the order of steps.

    Columns: `step`; `category`; `kind` (activation, gradient, parameter or loss); `site` (a site, `parameter:NAME`, or
    the name of a loss); `call` of the module in the step; `group` of gradients, else ""; `kpi` (mean, abs_mean, std,
    abs_max, svd; value of a loss); `aggregate` (batch_mean, batch_std, batch_abs_max; `sample`; `whole` where there is
    no batch); `sample`, its number, and `label`, its category; `rows`, the number of samples, 0 where there is no
    batch; `value`. A gradient that did not come has no row.

    Raises:
        InputError: no such folder, or a file in it that comgra did not write.
    """
    import pandas as pd  # takes a while, and recording needs none

    if not Path(folder).is_dir():
        raise InputError(f"there is no recording in {str(folder)!r}: no such folder")
    found: list[tuple[Any, ...]] = []
    for path in sorted(Path(folder).glob("rows-*/trials/steps/recordings/*__*/*.msgpack")):
        rows = int(path.parts[-6].removeprefix("rows-"))
        number, _, category = path.parts[-2].partition("__")
        try:
            content = msgpack.loads(path.read_bytes(), strict_map_key=False)
            records = PseudoDb([]).deserialize(content["recordings"]).record_set
            found += [(int(number), unescape(category), *row) for row in _rows(records, rows)]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(f"{path} cannot be read as comgra's: {error!r}") from error
    table = pd.DataFrame(found, columns=list(COLUMNS)).astype(_TYPES)
    return table.sort_values("step", kind="stable", ignore_index=True)


def _rows(records: dict[tuple[Any, ...], dict[str, Any]], rows: int) -> Iterator[tuple[Any, ...]]:
    for (_, kind, aggregate, call, node, _, record, kpi, _), held in records.items():
        name = _unquote(node.removeprefix("node__"))
        if record != "data" or name in ("begin:", "end:"):
            continue
        kind, _, group = kind.partition(":")
        sample, label = None, ""
        if kind == "forward":
            kind = {"loss": "loss", "parameter": "parameter"}.get(name.partition(":")[0], "activation")
        if aggregate.startswith("Sample "):
            number, _, label = aggregate.removeprefix("Sample ").partition(" | ")
            aggregate, sample = "sample", int(number)
        whole = aggregate == "has_no_batch_dimension"
        yield (
            kind, name.removeprefix("loss:"), max(call, 0), group, "value" if kpi == "single_value" else kpi,
            "whole" if whole else aggregate, sample, label, 0 if whole else rows, held["val"],
        )  # fmt: skip


def escape(category: str) -> str:
    """A category as comgra can spell it, in letters, digits, `-` and `_`: all else is `_XX` for each byte of UTF-8.

    Raises:
        InputError: it would be too long for a folder's name.
    """
    spelled = re.sub(
        r"[^a-zA-Z0-9-]", lambda m: "".join(f"_{byte:02x}" for byte in m[0].encode("utf-8", "surrogatepass")), category
    )
    if len(spelled) > _LONGEST:
        raise InputError(
            f"category {category[:40]!r}... takes {len(spelled)} characters, as comgra spells it; it can have "
            f"{_LONGEST}, of which letters of a to z, digits and '-' take one and any other byte three"
        )
    return spelled


def unescape(spelled: str) -> str:
    """The inverse of `escape`."""
    raw = re.sub(rb"_([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), spelled.encode())
    return raw.decode("utf-8", "surrogatepass")


def _quote(name: str) -> str:
    return name.replace("%", "%25").replace("*", "%2a")  # comgra marks its own copies with an asterisk


def _unquote(name: str) -> str:
    return name.replace("%2a", "*").replace("%25", "%")


def as_schedule(when: When) -> DecisionMakerForRecordings:
    """Which steps are recorded, as comgra says it.

    Raises:
        InputError: neither a number, nor steps, nor a function, nor comgra's own.
    """
    if isinstance(when, DecisionMakerForRecordings):
        return when
    if isinstance(when, int) and not isinstance(when, bool) and when >= 1:
        return DecisionMakerForRecordingsFrequencyPerType(when)
    if isinstance(when, Collection) and all(isinstance(step, int) for step in when):
        return DecisionMakerForRecordingsHardcoded(set(when))
    if callable(when):
        return _Chosen(when)
    raise InputError(
        f"when={when!r}; give n for every n steps, the numbers of steps, or a function of step and category"
    )


class _Always(DecisionMakerForRecordings):  # type: ignore[misc]
    """comgra gets only steps that are to be recorded."""

    def is_record_on_this_step(self, training_step: int, type_of_execution: str) -> bool:
        return True

    def mark_recording_on_this_step(self, training_step: int, type_of_execution: str) -> None:
        pass


class _Chosen(_Always):
    """A function of the caller's."""

    def __init__(self, choose: Callable[[int, str], bool]) -> None:
        self._choose = choose

    def is_record_on_this_step(self, training_step: int, type_of_execution: str) -> bool:
        return self._choose(training_step, unescape(type_of_execution))
