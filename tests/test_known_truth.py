"""The known-truth benchmark: its ways by independent computations, its judging by hand, its file against accidents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from statsmodels.stats.proportion import proportion_confint
from typer.testing import CliRunner

from crosslens.adapters import InputError
from crosslens.benchmarks import known_truth as benchmark
from crosslens.benchmarks import known_truth_tables as tables
from crosslens.benchmarks.known_truth import FIRST, PLACES, Cell, Cells, cells, judged, settings
from crosslens.benchmarks.known_truth_plots import plot_power, save_power
from crosslens.benchmarks.known_truth_runs import Forward, Training
from crosslens.benchmarks.known_truth_ways import (
    WAYS,
    Found,
    Observed,
    areas,
    by_comgra,
    by_figures,
    by_neurons,
    by_probe,
    found_by_all,
)  # fmt: skip
from crosslens.tasks import statistics
from crosslens.tasks.planting import KINDS

from .test_runner import RUN

SICK = np.arange(30) % 2 == 1


def test_every_kind_is_planted_somewhere() -> None:
    assert set(PLACES) == set(KINDS)


# ---- the ways


def test_the_probe_is_the_ridge_regression_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = {"shifted": rng.standard_normal((30, 7)) + 0.9 * SICK[:, None], "same": 5 + rng.standard_normal((30, 40))}
    found = by_probe(vectors, SICK, permutations=200, seed=3)
    for i, x in enumerate(vectors.values()):
        scaled, held_out = (x - x.mean(0)) / x.std(0), np.zeros(30)
        for train, held in StratifiedKFold(5, shuffle=True, random_state=3).split(scaled, SICK):
            ridge = Ridge(alpha=x.shape[1]).fit(scaled[train], np.where(SICK[train], 1.0, -1.0))
            held_out[held] = ridge.predict(scaled[held])
        assert found.scores[i] == pytest.approx(roc_auc_score(SICK, held_out))
    assert found.declared.tolist() == [True, False]


def test_areas_are_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(1)
    labels = np.stack([SICK, rng.permutation(SICK)])
    scores = rng.integers(0, 6, (3, 30, 2)).astype(float)
    want = [[roc_auc_score(labels[j], scores[i, :, j]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(areas(scores, labels), want)


def test_the_t_test_of_neurons_is_that_of_scipy_over_all_of_them() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((30, 5)), rng.standard_normal((30, 8))
    x[SICK, 3] += 2.5
    y[:, 1] = 4.0  # constant: no test, and no difference
    y[:, 2] = 2.0 + SICK  # constant in each: certain
    found = by_neurons({"x": x, "y": y, "z": y[:, :2]}, SICK)
    p = stats.ttest_ind(x[SICK], x[~SICK], equal_var=False).pvalue
    assert found.scores[0] == -p.min()
    assert found.scores[1] == 0
    assert p.min() * 15 < 0.05
    assert found.declared.tolist() == [True, True, False]


def observed(values: np.ndarray[Any, Any], names: list[tuple[str, str]], places: list[str]) -> Observed:
    """Figures alone, contrasted as a comparison would."""
    table = statistics.contrasts(values, SICK.tolist(), names=names, permutations=200)
    table.insert(0, "site", [name[0] for name in table["feature"]])
    return Observed(places, table, pd.DataFrame(), names, values, {place: values for place in places}, SICK)


def test_figures_rank_as_the_ranking_of_the_package_does() -> None:
    rng = np.random.default_rng(4)
    places = ["a", "b", "c", "d"]
    names = [(place, figure) for place in places for figure in ("mean", "sd", "rms")]
    values = rng.standard_normal((30, 12))
    values[SICK, 4] += 4.0
    values[SICK, 9] += 1.5
    seen = observed(values, names, places)
    order = list(dict.fromkeys(statistics.ranking(seen.contrasts)["site"]))
    found = by_figures(seen)
    assert [places[i] for i in np.argsort(-found.scores)] == order
    assert order[:2] == ["b", "d"]
    assert found.found.declared.tolist() == [False, True, False, True]
    assert found.p[1] == seen.contrasts["p_maxt"].min()


def test_nan_in_one_category_is_told_apart_by_comgras_figures_and_by_ours() -> None:
    rng = np.random.default_rng(5)
    places = ["a", "b"]
    names = [(place, figure) for place in places for figure in ("mean", "abs_mean", "sd", "abs_max", "nan")]
    values = rng.standard_normal((30, 10))
    values[:, [4, 9]] = 0.0
    values[SICK, 9] = 3.0
    seen = observed(values, names, places)
    for found in (by_comgra(seen), by_figures(seen).found):
        assert found.declared.tolist() == [False, True]
        assert found.scores[1] > found.scores[0]


@pytest.mark.parametrize("kind", ["variance", "nan", "exploding"])
def test_a_strong_difference_is_found_where_it_is_first(kind: str) -> None:
    cell = Cell(kind, 0.8, 0)
    world = cell.world(0, (6, 12), 199)
    truth = world.truth(PLACES[kind][0])
    found = cell.run(world)
    world.close()
    assert set(found) == set(WAYS)
    assert all(len(rows) == 2 for rows in found.values())
    assert len(world.places) == 17
    first = {"variance": "blocks.1.resid_post", "nan": "blocks.1.mlp.post", "exploding": "blocks.1.mlp.out"}
    assert world.places[int(np.argmax(truth))] == first[kind]
    assert world.places[0] == ("final_norm" if kind == "exploding" else "embed")
    assert truth.sum() == {"variance": 7, "nan": 9, "exploding": 10}[kind]
    for way in ("crosslens", "crosslens: figures"):
        assert found[way][-1]["first"] == 1, way
    assert found["crosslens"][-1]["false"] == 0


def test_sample_sizes_are_nested_and_the_same_cell_gives_the_same_again() -> None:
    small, large = Forward(3, (6,), 199), Forward(3, (6, 9), 199)
    one = next(small.observe("mean", "blocks.1.resid_post", 0.5))
    other, more = large.observe("mean", "blocks.1.resid_post", 0.5)
    np.testing.assert_array_equal(one.values[one.sick].sum(0), other.values[other.sick].sum(0))
    assert (len(other.sick), more.sick.sum()) == (12, 9)
    again = list(large.observe("mean", "blocks.1.resid_post", 0.5))[1]
    np.testing.assert_array_equal(again.values, more.values)
    null = list(large.observe("", "", 0.0))[1]
    np.testing.assert_array_equal(null.values[~null.sick], more.values[~more.sick])
    early = [i for i, (place, _) in enumerate(more.names) if place.startswith(("embed", "blocks.0."))]
    np.testing.assert_array_equal(null.values[:, early], more.values[:, early])  # before the plant nothing moves


def test_training_starts_over_and_its_vectors_are_the_gradients_that_the_recorder_saw() -> None:
    world = Training(1, (4,), 199)
    first = next(world.observe("exploding", "blocks.1.resid_post", 0.4))
    null = next(world.observe("", "", 0.0))
    again = next(world.observe("exploding", "blocks.1.resid_post", 0.4))
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.values, null.values)
    for place in world.places:
        recorded = first.values[:, first.names.index((place, "mean"))]
        np.testing.assert_allclose(first.vectors[place].mean(axis=1), recorded, rtol=1e-3, atol=1e-9)


# ---- judging


def test_judging_is_right_by_hand() -> None:
    truth = np.array([False, False, True, True])
    found = judged(Found(np.array([0.1, np.inf, 5.0, np.inf]), np.array([False, False, True, True])), truth)
    assert found == {"auroc": 0.625, "ap": 0.5833, "first": 1, "power": 1, "false": 0, "fdp": 0}
    found = judged(Found(np.zeros(4), np.array([True, False, False, True])), truth)
    assert found == {"auroc": 0.5, "ap": 0.5, "first": 0, "power": 0.5, "false": 1, "fdp": 0.5}
    nothing = np.zeros(4, dtype=np.bool_)
    assert judged(Found(np.zeros(4), truth), nothing) == {"false": 1, "fdp": 1}
    assert judged(Found(np.zeros(4), nothing), nothing) == {"false": 0, "fdp": 0}


def test_intervals_are_those_of_scipy_and_statsmodels() -> None:
    values = [0.1, 0.4, 0.35, 0.8]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert tables.interval(values) == pytest.approx((np.mean(values), low, high))
    assert tables.wilson(3, 60) == pytest.approx(proportion_confint(3, 60, method="wilson"))
    assert tables.wilson(0, 60) == pytest.approx(proportion_confint(0, 60, method="wilson"))


def test_cells_have_seeds_of_their_own_and_every_null_once() -> None:
    found = cells(seeds=3, nulls=7, training_nulls=2)
    assert len(found) == len(set(found))
    assert sum(cell.kind == "forward" for cell in found) == 7
    assert sum(cell.kind == "training" for cell in found) == 2
    assert {cell.seed for cell in found if cell.kind in PLACES} == {FIRST, FIRST + 1, FIRST + 2}
    assert set(cells(2, 1, 1)) - set(cells(4, 1, 1)) == set(), "more seeds make use of what is there"


# ---- its file


def record(cell: Cell, better: str = "crosslens") -> dict[str, Any]:
    """A finished cell in which one way finds all and the others about half."""
    null = cell.kind not in PLACES
    names = ("false", "fdp") if null else ("auroc", "ap", "first", "power", "false", "fdp")
    rng = np.random.default_rng(cell.seed)

    def value(way: str, name: str) -> float:
        return 0.0 if name in ("false", "fdp") else 0.95 if way == better else float(rng.uniform(0.4, 0.6))

    return {
        "cpu_s": 0.5, "n": [8, 16, 32],
        "found": {way: {name: [value(way, name)] * 3 for name in names} for way in WAYS},
    }  # fmt: skip


def test_finished_cells_are_used_again_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path, cell, other = tmp_path / "k.jsonl", Cell("mean", 0.1, 100), Cell("forward", 0.0, 10_000)
    kept = Cells(path, settings(200), {"environment": {}})
    kept.add(cell, record(cell))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "mean", "si')
    kept = Cells(path, settings(200), {})
    assert list(kept.done) == [cell]
    assert path.read_bytes() == whole
    kept.add(other, record(other))
    assert list(Cells(path, settings(200), {}).done) == [cell, other]


def test_cells_of_other_settings_and_damaged_ones_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    Cells(path, settings(200), {})
    with pytest.raises(InputError, match=r"other settings \(permutations: 200, not 500\); give another --out"):
        Cells(path, settings(500), {})
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(InputError, match="line 2, is no cell of this benchmark: KeyError"):
        Cells(path, settings(200), {})
    path.write_text("")
    with pytest.raises(InputError, match="holds no cells; delete it"):
        Cells(path, settings(200), {})
    with pytest.raises(InputError, match="cannot be used"):
        Cells(tmp_path, settings(200), {})


def test_the_command_runs_what_is_missing_and_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "COUNTS", (4,))
    monkeypatch.setattr(benchmark, "PLACES", {"mean": ("blocks.1.resid_post", (0.5,))})
    app = benchmark.typer.Typer()
    app.command()(benchmark.main)
    out = tmp_path / "k.md"
    words = ["--out", str(out), "--seeds", "2", "--nulls", "2", "--training-nulls", "1", "--permutations", "199"]
    result = CliRunner().invoke(app, [*words, "--figure", str(tmp_path / "p.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p.png").stat().st_size > 10_000
    text = out.read_text()
    assert str(tmp_path) not in text
    assert "--out known_truth.md --seeds 2 --nulls 2 --training-nulls 1 --permutations 199" in text
    frame = pd.read_csv(out.with_suffix(".csv"))
    assert set(frame["kind"]) == {"mean", "forward", "training"}
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines[1:]] == ["mean", "forward", "mean", "forward", "training"]
    scored = [line["found"]["crosslens"]["power"][0] for line in lines[1:] if line["kind"] == "mean"]
    row = frame[(frame["kind"] == "mean") & (frame["way"] == "crosslens")].iloc[0]
    assert row["power"] == pytest.approx(np.mean(scored), abs=1e-4)

    def never(*_: Any) -> Any:
        raise AssertionError("a finished cell runs again")

    monkeypatch.setattr(Cell, "run", never)
    assert CliRunner().invoke(app, words).exit_code == 0
    assert out.read_text() == text
    refused = CliRunner().invoke(app, ["--out", str(tmp_path / "k.txt")])
    assert isinstance(refused.exception, InputError)
    assert "must be a .md file" in str(refused.exception)


# ---- what it says


def made(better: str) -> pd.DataFrame:
    """A table in which one way is better than all."""
    return tables.as_table([{**vars(cell), **record(cell, better)} for cell in cells(4, 4, 2)])


def test_the_page_names_who_is_better_and_where() -> None:
    facts = {
        "settings": json.loads(json.dumps(settings(200))),
        "environment": {"cores": {"physical": 2}, "platform": "Linux-x86_64", "versions": {"torch": "2.0"}},
    }
    losing = tables.page(made("linear probe"), facts).partition("Where this engine loses")[2]
    assert "| linear probe | mean | auroc 3x, first 3x, power 3x |" in losing
    assert "| t test of each neuron |" not in losing.partition("## What is not")[0] or "worst" in losing
    winning = tables.page(made("crosslens"), facts).partition("Where this engine loses")[2]
    assert "| linear probe |" not in winning
    gaps = tables.differences(made("crosslens"))
    assert (gaps["low"] > 0).all()
    np.testing.assert_allclose(gaps["ours minus its"].mean(), 0.45, atol=0.02)


def test_a_way_that_declares_too_much_is_named() -> None:
    table = made("crosslens")
    nulls = (table["kind"] == "forward") & (table["way"] == "linear probe")
    table.loc[nulls, "false"] = 1.0
    assert "linear probe (forward, n 8: 1.000)" in tables._verdict(table)
    assert "No way" in tables._verdict(made("crosslens"))
    found = tables.calibration(table).set_index("way")["forward, n 8"]
    assert found["linear probe"].startswith("1.000 (0.510 to 1.000)")


def test_curves_show_the_means_and_refuse_what_is_not_there(tmp_path: Path) -> None:
    table = made("linear probe")
    figure = plot_power(table, "mean", ways=("linear probe", "crosslens"))
    lines = {text: line for line, text in zip(*figure.get_legend_handles_labels(), strict=True)}
    np.testing.assert_allclose(lines["linear probe"].lines[0].get_ydata(), [0.95] * 4)
    want = table[(table["kind"] == "mean") & (table["way"] == "crosslens") & (table["n"] == 32)]
    np.testing.assert_allclose(lines["crosslens"].lines[0].get_ydata(), want.groupby("size")["power"].mean())
    assert len(plot_power(table, "mean", figure.figure.add_subplot(), size=0.2).get_xticks()) == 3
    with pytest.raises(InputError, match="nothing of kind 'turn'"):
        plot_power(table, "turn")
    with pytest.raises(InputError, match=r"size 3 is in the table; there are 0.1, 0.2"):
        plot_power(table, "mean", size=3)
    with pytest.raises(InputError, match="no figure"):
        plot_power(table, "mean", figure="p")
    with pytest.raises(InputError, match="no way"):
        plot_power(table, "mean", ways=["mine"])
    with pytest.raises(InputError, match="cannot be written"):
        save_power(table, tmp_path / "absent" / "x.png")


def test_all_ways_answer_where_vectors_are_missing() -> None:
    world = Forward(0, (8,), 199)
    seen = next(world.observe("nan", "blocks.1.mlp.post", 0.2))
    assert seen.directions.empty
    found = found_by_all(seen, 199, 0)
    assert not found["crosslens: directions"].declared.any()
    assert found["crosslens"].declared.any()


def test_the_kept_page_is_what_its_cells_say() -> None:
    kept = RUN / "studies" / "known_truth.md"
    records = [json.loads(line) for line in kept.with_suffix(".jsonl").read_text().splitlines()]
    text = kept.read_text()
    assert "`python -m crosslens.benchmarks.known_truth --out known_truth.md --seeds 10 --nulls 400 " in text
    assert records[0]["settings"] == json.loads(json.dumps(settings(200))), "the benchmark has changed: run it again"
    table = tables.as_table(records[1:])
    assert tables.page(table, records[0]) == text
    assert tables._csv(tables.averages(table)) == kept.with_suffix(".csv").read_text()
