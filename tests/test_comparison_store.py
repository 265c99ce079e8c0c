"""The folder of a comparison: nothing is lost, counted twice or mistaken for another, whatever happens."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from crosslens.adapters import InputError, Inspector, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks import Comparison, compare

from .test_compare import SITES, same, stories

OPTIONS: dict[str, Any] = {"sites": SITES, "batch_size": 3, "window": 4, "directions": "embed", "units": "embed"}


@pytest.fixture(scope="module")
def lens() -> Iterator[Inspector]:
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(lens: Inspector) -> Comparison:
    return compare(lens, stories(), **OPTIONS)


def forwards(lens: Inspector, *arguments: Any, **options: Any) -> tuple[Comparison, int]:
    """A comparison, and the number of examples that ran for it."""
    ran: list[int] = []
    handle = lens.model.register_forward_hook(lambda _m, _a, out: ran.append(len(out.logits)))
    try:
        return compare(lens, *arguments, **options), sum(ran)
    finally:
        handle.remove()


def identical(a: Comparison, b: Comparison) -> None:
    """Equal to the last bit, and in the same order."""
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    pd.testing.assert_frame_equal(a.examples, b.examples, check_exact=True)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.vectors["embed"], b.vectors["embed"])
    pd.testing.assert_frame_equal(a.units(), b.units(), check_exact=True)


def cut(lens: Inspector, out: Path, after: int, **options: Any) -> None:
    """Run until so many examples are done, then be interrupted."""

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(lens, stories(), out=out, progress=stop, **{**OPTIONS, **options})


@pytest.mark.parametrize("after", [2, 4, 7, 9, 11])
def test_a_run_that_was_cut_goes_on_and_gives_the_very_same(
    lens: Inspector, whole: Comparison, tmp_path: Path, after: int
) -> None:
    cut(lens, tmp_path, after)
    (tmp_path / ".part-00009.parquet.part").write_bytes(b"torn")  # what a kill in the middle of a write leaves
    kept = Comparison.load(tmp_path)
    assert not kept.complete
    assert kept.n == (after - 1) // 4 * 4
    done, ran = forwards(lens, stories(), out=tmp_path, resume=True, **OPTIONS)
    assert ran == 12 - kept.n, "what was finished is not run again"
    identical(done, whole)
    identical(Comparison.load(tmp_path), whole)
    assert done.complete
    assert Comparison.load(tmp_path).complete
    again, ran = forwards(lens, iter(stories()), out=tmp_path, resume=True, **OPTIONS)
    assert ran == 0
    identical(again, whole)


@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_only_what_is_damaged_is_run_again(lens: Inspector, whole: Comparison, tmp_path: Path, damage: str) -> None:
    compare(lens, stories(), out=tmp_path, **OPTIONS)
    part = tmp_path / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data if damage == "changed" else data[: len(data) // 2])
    if damage == "gone":
        part.unlink()
    left = Comparison.load(tmp_path)
    assert (left.complete, left.n) == (False, 8)
    assert left.problems == ["part-00001.parquet is damaged or missing: its 4 examples are left out"]
    left.save(tmp_path / "kept")
    assert Comparison.load(tmp_path / "kept").problems == left.problems
    done, ran = forwards(lens, stories(), out=tmp_path, resume=True, **OPTIONS)
    assert ran == 4
    identical(done, whole)


def test_no_vector_is_written_that_is_not_kept(lens: Inspector, tmp_path: Path) -> None:
    options = {**OPTIONS, "keep": 2}
    cut(lens, tmp_path / "run", 9, keep=2)
    done = compare(lens, stories(), out=tmp_path / "run", resume=True, **options)
    alone = compare(lens, stories(), **options)
    np.testing.assert_array_equal(done.vectors["embed"], alone.vectors["embed"])
    assert np.isfinite(done.vectors["embed"]).all()
    frames = [pd.read_parquet(path) for path in sorted((tmp_path / "run").glob("*.parquet"))]
    assert frames[0]["vector"].notna().sum() == 4
    assert sum(frame["vector"].notna().sum() for frame in frames) < 12


def test_another_comparison_is_not_gone_on_with(lens: Inspector, tmp_path: Path) -> None:
    cut(lens, tmp_path, 9)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(says: str, examples: Any = None, **options: Any) -> None:
        examples = stories() if examples is None else examples
        with pytest.raises(InputError, match=says):
            compare(lens, examples, **{**OPTIONS, "out": tmp_path, "resume": True, **options})

    changed = [*stories()[:5], {**stories()[5], "text": "another text"}, *stories()[6:]]
    longer = [*stories(), {**stories()[0], "pair": "a new one"}]
    shorter = stories()[:3]
    refused("not empty: name another folder, or resume", resume=False)
    refused("differ in kpis", kpis=["mean"])
    refused(r"differ in sites: \['embed'\] and \['blocks.0.resid_post'", sites="embed")
    refused("with batch_size=3, not 5", batch_size=5)
    refused("with shard=.0, 1., not .0, 2.", shard=(0, 2))
    for wrap in (list, iter):
        refused(r"other examples: example 6 was 'the cat.*' in 'hill \"green\"' and is 'another text'", wrap(changed))
    refused(r"12 examples \(sea: blue 6, hill \"green\" 6\) then, 13 examples .* now", longer)
    refused("window 1 had 4 examples and has 3", shorter)
    refused("window 1 had 4 examples and has 3", iter(shorter))
    refused("it holds window 2, and there are 4 examples now", iter(stories()[:4]))
    with (
        open_inspector("hooks", *tiny_model("llama", dtype=torch.float64, seed=1)) as other,
        pytest.raises(InputError, match="differ in weights"),
    ):
        compare(other, stories(), out=tmp_path, resume=True, **OPTIONS)
    after = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert before == after, "a refusal changes nothing"


def test_a_full_disk_is_told_and_what_was_finished_stays(lens: Inspector, whole: Comparison, tmp_path: Path) -> None:
    compare(lens, stories(), out=tmp_path / "sizes", **OPTIONS)
    part = (tmp_path / "sizes" / "part-00000.parquet").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(done: int, total: int) -> None:
        if done > 4:  # the first window is on the disk; from now on no file can be that long
            resource.setrlimit(resource.RLIMIT_FSIZE, (part // 2, hard))

    try:
        with pytest.raises(InputError, match=r"part-00001.parquet cannot be written: .*1 finished windows are kept"):
            compare(lens, stories(), out=tmp_path / "run", progress=filled, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "run").glob("*.part"))
    kept = Comparison.load(tmp_path / "run")
    assert (kept.n, kept.complete) == (4, False)
    done, ran = forwards(lens, stories(), out=tmp_path / "run", resume=True, **OPTIONS)
    assert ran == 8
    identical(done, whole)


def test_what_was_saved_is_what_is_loaded(lens: Inspector, tmp_path: Path) -> None:
    few = compare(lens, stories(), **{**OPTIONS, "keep": 3})
    few.save(tmp_path / "kept")
    loaded = Comparison.load(tmp_path / "kept")
    identical(loaded, few)
    assert loaded.facts == few.facts
    assert loaded.complete
    same(loaded.merge(few), few.merge(loaded))
    for folder in (tmp_path / "kept", tmp_path / "kept" / "comparison.json"):
        with pytest.raises(InputError, match="not a folder that is new or empty"):
            few.save(folder)
    with pytest.raises(InputError, match="was saved, and cannot go on"):
        compare(lens, stories(), out=tmp_path / "kept", resume=True, **OPTIONS)
    (tmp_path / "kept" / "sums.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"sums.npz cannot be read"):
        Comparison.load(tmp_path / "kept")
    (tmp_path / "kept" / "kept.parquet").unlink()
    with pytest.raises(InputError, match=r"kept.parquet cannot be read"):
        Comparison.load(tmp_path / "kept")


def test_a_store_that_cannot_be_read_says_why(lens: Inspector, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no comparison"):
        Comparison.load(tmp_path)
    compare(lens, stories(), out=tmp_path / "run", **OPTIONS)
    path = tmp_path / "run" / "comparison.json"
    state = json.loads(path.read_text())
    assert set(state["versions"]) >= {"crosslens", "torch"}
    assert state["corpus"]["counts"] == {"sea: blue": 6, 'hill "green"': 6}
    for schema, says in ((99, "schema 99.*install the version"), (1, "schema 1;.*run the comparison again")):
        path.write_text(json.dumps({**state, "schema": schema}))
        with pytest.raises(InputError, match=says):
            Comparison.load(tmp_path / "run")
        with pytest.raises(InputError, match=says):
            compare(lens, stories(), out=tmp_path / "run", resume=True, **OPTIONS)
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match="cannot be read"):
        Comparison.load(tmp_path / "run")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        compare(lens, stories(), out=file, **OPTIONS)
    with pytest.raises(InputError, match="cannot be written"):
        compare(lens, stories(), out=file / "below", **OPTIONS)
