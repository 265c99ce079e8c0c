"""A recording of training steps: its table, where categories of steps differ, and its page.

recording = Recording.load("runs/1")
recording.table()         # kind, site, kpi, category, step, iteration, call, role, group, sample, value
recording.contrasts(windows=10)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from crosslens.adapters.errors import InputError

from . import statistics
from .design import Between
from .recording_figures import BATCH
from .recording_store import read_parts, read_state, steps_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

COLUMNS = ("kind", "site", "kpi", "category", "step", "iteration", "call", "role", "group", "sample", "value")
FEATURE = ("kind", "site", "kpi", "role", "group")
_CONSTANT = {"count"}


class Recording:
    """Figures of steps, as they were recorded.

    Attributes:
        facts: schema, versions, sites and KPIs.
        complete: whether the recorder was closed and everything is there.
        problems: what is not there, and why.
    """

    def __init__(self, parts: Sequence[pa.Table], facts: dict[str, Any], complete: bool, problems: list[str]) -> None:
        self._parts = list(parts)
        self.facts, self.complete, self.problems = facts, complete, problems

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a folder that a `Recorder` wrote, or is writing. Damaged parts are left out, and `problems` says so.

        Raises:
            InputError: no recording there, or one of another version.
        """
        state = read_state(Path(path))
        problems = list(state["problems"])
        before = len(problems)
        parts = list(read_parts(Path(path), state, problems))
        facts = {name: value for name, value in state.items() if name not in ("complete", "problems", "parts")}
        return cls(parts, facts, bool(state["complete"]) and len(problems) == before, problems)

    @property
    def steps(self) -> pd.DataFrame:
        """One step a row: step, category, notes (a list)."""
        import pandas as pd

        rows = [step for part in self._parts for step in steps_of(part)]
        return pd.DataFrame(rows, columns=["step", "category", "notes"])

    def table(self, kinds: Sequence[str] | None = None) -> pd.DataFrame:
        """One figure a row, in the order of `COLUMNS`.

        kind: activation, gradient, parameter, loss or scalar. site: a site, `parameter:NAME`, or the name of a loss or
        scalar. kpi: "value" for losses and scalars. category: of the step, or of the sample; None where there is none.
        iteration: of the step. call: of the module in the iteration. group: of gradients, else "". sample: its number
        in the batch, missing for figures of the whole tensor. A gradient that did not come has no row.

        Args:
            kinds: only these; default all.
        """
        import pandas as pd
        import pyarrow as pa

        empty = pd.DataFrame(columns=list(COLUMNS))
        if not self._parts:
            return empty
        kpis = list(self.facts["kpis"])
        wide = pa.concat_tables([part.replace_schema_metadata(None) for part in self._parts]).unify_dictionaries()
        frame = wide.to_pandas(integer_object_nulls=False)
        frame["sample"] = frame["sample"].astype("Int32")
        if kinds is not None:
            frame = frame[frame["kind"].isin(list(kinds))]
        number = frame["kind"].isin(["loss", "scalar"])
        keys = [name for name in COLUMNS if name not in ("kpi", "value")]
        tensors = frame[~number]
        found = [frame.loc[number, [*keys, "value"]].assign(kpi="value")]
        for kpi in kpis:
            part = tensors[[*keys, kpi]].rename(columns={kpi: "value"}).assign(kpi=kpi)
            found.append(part.dropna(subset="value") if kpi in BATCH else part)
        table: pd.DataFrame = pd.concat([each for each in found if len(each)] or [empty])
        table = table[list(COLUMNS)].sort_values("step", kind="stable", ignore_index=True)
        for name in ("kind", "site", "kpi", "category", "role", "group"):
            table[name] = table[name].astype(object).where(table[name].notna(), None)
        return table

    def contrasts(
        self, *, windows: int = 1, samples: bool = False, between: Between = None, permutations: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """Where categories differ: `statistics.contrasts` with the step as the unit of replication.

        A feature is a kind, site, KPI, role and group: the mean over the iterations and calls of a step.

        Args:
            windows: categories are compared within so many stretches of equal length of the run. Training drifts, so
                that categories which are not spread evenly over it differ by when they came; and steps that lie close
                are alike, so that p values take them for more than they are.
            samples: compare the categories of samples instead: what a step gives is the mean over its samples of each
                category, and steps are pairs.
            between, permutations, seed: see `statistics.contrasts`.

        Returns:
            Columns kind, site, kpi, role and group, and those of `statistics.COLUMNS` behind `feature`.

        Raises:
            InputError: an option is out of range, or no samples were recorded.
        """
        import numpy as np

        if isinstance(windows, bool) or not isinstance(windows, int) or windows < 1:
            raise InputError(f"windows={windows!r}: it must be a whole number, from 1")
        rows = self._rows(samples)
        if samples and rows.empty:
            raise InputError("no sample has figures here; call step.samples([...]) before the forward")
        units = rows.pivot_table(index=["step", "category"], columns=list(FEATURE), values="value", sort=True)
        units = units.loc[:, units.notna().any()]
        if units.empty:
            return _split(statistics.contrasts([[0.0]], ["none"], names=[("",) * len(FEATURE)]))
        steps = units.index.get_level_values("step").to_numpy()
        categories = units.index.get_level_values("category").tolist()
        distinct = np.unique(steps)
        stretch = np.searchsorted(distinct, steps) * windows // len(distinct)
        found = statistics.contrasts(
            units.to_numpy(), categories, names=list(units.columns), pairs=steps.tolist() if samples else None,
            strata=stretch.tolist() if windows > 1 else None, between=between, permutations=permutations, seed=seed,
        )  # fmt: skip
        return _split(found)

    def _rows(self, samples: bool) -> pd.DataFrame:
        table = self.table()
        table = table[table["sample"].notna() if samples else table["sample"].isna()]
        return table[table["category"].notna() & ~table["kpi"].isin(_CONSTANT)]

    def to_html(self, path: str | Path, title: str = "Training steps by category", **options: Any) -> None:
        """Write the page: figures, contrasts, ranking, and curves of losses and scalars by category.

        Args:
            path: of the file. title: its heading. options: of `contrasts`.

        Raises:
            InputError: as `contrasts`; the file cannot be written.
        """
        from .page import page

        contrasts = self.contrasts(**options)
        table = self._rows(bool(options.get("samples")))
        table = table.assign(site=_named(table))
        grouped = table.groupby(["site", "kpi", "category"], sort=False)["value"]
        cells = grouped.agg(
            n="count", mean="mean", sd="std", min="min", max="max", missing=lambda v: int(v.isna().sum())
        )
        for name, q in (("q05", 0.05), ("q25", 0.25), ("q50", 0.5), ("q75", 0.75), ("q95", 0.95)):
            cells[name] = grouped.quantile(q)
        curves = self.table(["loss", "scalar"])
        curves = curves.assign(name=curves["site"], category=curves["category"].fillna("(none)"))
        features: Any = list(zip(_named(contrasts), contrasts["kpi"], strict=True))
        named = contrasts.assign(site=_named(contrasts), feature=features)
        facts = {**self.facts, "complete": str(self.complete), "steps": len(self.steps), "problems": self.problems}
        html = page(title, cells.reset_index(), named, statistics.ranking(named), curves=curves, facts=facts)
        try:
            Path(path).write_text(html, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error


def _split(table: pd.DataFrame) -> pd.DataFrame:
    features = table.pop("feature").tolist()
    for i, name in enumerate(FEATURE):
        table.insert(i, name, [each[i] for each in features])
    return table


def _named(table: pd.DataFrame) -> list[str]:
    """Kind, site, role and group in one text."""
    cells = zip(table["kind"], table["site"], table["role"], table["group"], strict=True)
    return [
        f"{site} {group or ('' if kind == 'activation' else kind)}{f' ({role})' if role else ''}".replace(
            "  ", " "
        ).rstrip()
        for kind, site, role, group in cells
    ]
