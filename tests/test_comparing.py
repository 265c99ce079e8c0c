"""`crosslens compare` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crosslens.benchmarks import cli, comparing
from crosslens.tasks import Comparison

from .test_compare import stories


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command with its file; returns exit status, stdout and stderr."""
    path = tmp_path / "stories.csv"
    pd.DataFrame(stories()).to_csv(path, index=False)

    def run(*options: Any, file: Path = path) -> tuple[Any, str, str]:
        monkeypatch.setattr(
            "sys.argv", ["crosslens", "compare", str(file), "--model", "tiny-llama", *map(str, options)]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_the_strongest_are_printed_and_everything_is_written(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, err = call("--out", out, "--permutations", 100, "--directions", "embed")
    assert (code, err) == (0, "")
    assert '12 examples: sea: blue 6, hill "green" 6' in shown
    assert "The 10 strongest differences of 156:" in shown
    assert "in pairs; p_maxt" in shown
    assert "Where the directions differ most" in shown
    files = {"comparison.html", "table.csv", "contrasts.csv", "ranking.csv", "directions.csv", "comparison.json"}
    assert files | {"part-00000.parquet"} == {each.name for each in out.iterdir()}
    as_is: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # a KPI is called nan
    ranking = pd.read_csv(out / "ranking.csv", **as_is)
    first = shown.split("─\n")[1].splitlines()[0].split()
    assert first[:2] == ranking.loc[0, ["site", "kpi"]].tolist()
    assert ranking["bound"].is_monotonic_decreasing
    expected = Comparison.load(out).contrasts(permutations=100)
    written = pd.read_csv(out / "contrasts.csv", **as_is).fillna({"note": ""})
    pd.testing.assert_frame_equal(written, expected.drop(columns="feature"), check_dtype=False)
    assert "ocean" in (out / "comparison.html").read_text()
    assert call("--out", out)[0] == 2, "a folder that is in use"
    code, again, _ = call("--out", out, "--resume", "--permutations", 100, "--directions", "embed")
    assert (code, again) == (0, shown)


def test_json(call: Any, tmp_path: Path) -> None:
    code, shown, _ = call("--out", tmp_path / "out", "--permutations", 50, "--json", "--sites", "embed", "--kpi", "rms")
    found = json.loads(shown)
    assert code == 0
    assert (found["examples"], found["complete"], found["contrasts"]) == (12, True, 1)
    assert found["categories"] == {"sea: blue": 6, 'hill "green"': 6}
    (best,) = found["ranking"]
    assert (best["site"], best["kpi"], best["tested"]) == ("embed", "rms", "paired")


def test_crossed_columns_and_unpaired_texts(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"prompt": f"{s['text']} {i}", "a": s["category"], "b": s["length"]} for i, s in enumerate(stories() * 2)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    options = ("--category", "a", "--category", "b", "--text", "prompt", "--sites", "embed", "--out", tmp_path / "out")
    code, shown, _ = call(*options, "--permutations", 20, file=path)
    assert code == 0
    assert "sea: blue × False" in shown
    assert "unpaired" in shown
    assert "The 10 strongest differences of 13" in shown


def test_corpora_without_a_difference_say_so(call: Any, tmp_path: Path) -> None:
    one, once = tmp_path / "one.jsonl", tmp_path / "once.jsonl"
    one.write_text("\n".join(json.dumps({"text": s["text"], "category": "only"}) for s in stories()))
    code, shown, _ = call("--sites", "embed", "--out", tmp_path / "a", file=one)
    assert code == 0
    assert "one category only" in shown
    assert (tmp_path / "a" / "table.csv").exists()
    once.write_text("\n".join(json.dumps({"text": s["text"], "category": s["category"]}) for s in stories()[:3]))
    code, shown, _ = call("--sites", "embed", "--out", tmp_path / "b", file=once)
    assert code == 0
    assert 'No difference could be tested: hill "green" seen once' in shown


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", (), "is empty"),
        ("text,kind\na,b\n", (), "no column 'category'"),
        ("text,category\na,b\n", ("--kpi", "meen"), "there is no 'meen'"),
        ("text,category\na,b\n", ("--sites", "blocks.*.resid_pots"), "nearest"),
        ("text,category\na,b\n", ("--backend", "nobody"), "nobody"),
        ("text,category\na b c d e f g,b\n", ("--max-tokens", "3"), "must be 1 to 3"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_status_2(
    call: Any, tmp_path: Path, content: str, options: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(content)
    code, shown, err = call("--out", tmp_path / "out", *options, file=path)
    assert (code, shown) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_says_how_to_go_on(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "compare", stopped)
    code, shown, err = call("--out", tmp_path / "out")
    assert (code, shown) == (130, "")
    assert f"kept in {tmp_path / 'out'}; the same command with --resume goes on" in err


def test_tables_that_cannot_be_written_are_told(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    code, _, err = call("--out", tmp_path / "out", "--sites", "embed", "--permutations", 10)
    assert code == 2
    assert "No space left on device; the figures are kept" in err
    assert Comparison.load(tmp_path / "out").complete
