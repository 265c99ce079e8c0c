"""Examples: every kind of source gives the same, and every mistake is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters import InputError
from crosslens.tasks.examples import MOST_TEXT, Corpus, Example

ROWS = [
    {"text": "Zoë said “no”,\nand left.", "category": "1", "length": "NA", "pair": "p 1"},
    {"text": "a, b", "category": 'x "y"', "length": "null", "pair": ""},
]


def contents(source: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [(e.number, e.text, e.categories, e.pair, e.mark) for e in Corpus(source, **options)]


@pytest.mark.parametrize("kind", ["csv", "csv with a byte order mark", "jsonl", "parquet", "frame", "iterator", "CSV"])
def test_every_source_gives_the_same(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(ROWS)
    source: Any = tmp_path / f"rows.{kind.split(' ', maxsplit=1)[0]}"
    if kind == "frame":
        source = frame
    elif kind == "iterator":
        source = iter(ROWS)
    elif kind == "parquet":
        frame.to_parquet(source)
    elif kind == "jsonl":
        source.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    else:
        frame.to_csv(source, index=False, encoding="utf-8-sig" if "mark" in kind else "utf-8")
    assert contents(source, categories=["category", "length"]) == contents(ROWS, categories=["category", "length"])
    assert [e.pair for e in Corpus(ROWS)] == ["p 1", ""]


def test_a_survey_counts_and_tells_one_corpus_from_another() -> None:
    found = Corpus(ROWS).survey()
    assert (found.n, found.counts) == (2, {"1": 1, 'x "y"': 1})
    assert found.mark == Corpus(pd.DataFrame(ROWS)).survey().mark
    assert found.mark != Corpus(ROWS[::-1]).survey().mark
    assert found.mark != Corpus([{**ROWS[0], "pair": "other"}, ROWS[1]]).survey().mark
    seen: list[int] = []
    Corpus(ROWS).survey(lambda example: seen.append(example.number))
    assert seen == [0, 1]
    assert not Corpus(iter(ROWS)).again
    assert Corpus(ROWS).again


@given(
    st.lists(st.text(min_size=1), min_size=2, max_size=2),
    st.lists(st.text(min_size=1), min_size=2, max_size=2),
)
def test_crossed_labels_are_equal_only_where_the_labels_are(a: list[str], b: list[str]) -> None:
    one, two = (Example(0, "t", tuple(labels), "", "").label for labels in (a, b))
    assert (one == two) == (a == b)


def test_crossed_labels_that_hold_the_sign_between_them() -> None:
    one, two = Example(0, "t", ("a × b", "c"), "", "").label, Example(0, "t", ("a", "b × c"), "", "").label
    assert one != two
    assert Example(0, "t", ("a × b",), "", "").label == "a × b"


def test_the_key_depends_on_the_item_and_is_kept_when_the_text_is_cut() -> None:
    long = "x" * (MOST_TEXT + 1)
    same = [{"text": long, "category": c, "pair": "story"} for c in "ab"]
    a, b = Corpus(same)
    assert a.key(0) == b.key(0) == a.short().key(0)
    assert a.key(0) != a.key(1)
    assert len(a.short().text) == MOST_TEXT
    alone, other = Corpus([{"text": long, "category": "a"}, {"text": long + "y", "category": "a"}])
    assert alone.key(0) == alone.short().key(0)
    assert alone.short().key(0) != other.short().key(0), "though what is kept of their texts is the same"


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "no examples"),
        ([{"text": "a"}], r"example 1: there is no column 'category'; it has text"),
        ([{"txt": "a", "category": "b"}], r"no column 'text'; did you mean 'txt'\? It has txt, category"),
        ([{"text": " ", "category": "b"}], "must be a text that is not empty"),
        ([{"text": 3, "category": "b"}], "'text' is 3"),
        ([{"text": "a", "category": None}], "every example needs a category"),
        ([{"text": "a", "category": "x"}, {"text": "a", "category": np.nan}], "example 2: 'category' is nan"),
        ([{"text": "a", "category": pd.NA}], "'category' is <NA>"),
        ([{"text": "a", "category": ["b"]}], "a category is a text or a number"),
        ([{"text": "\ud800", "category": "b"}], "no valid text"),
        (["a"], "an example is a mapping"),
        (pd.DataFrame({"text": ["a"], "kind": ["b"]}), "no column 'category'"),
    ],
)
def test_bad_examples_are_refused(examples: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Corpus(examples).survey()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": 3}, "give a file"),
        ({"source": {"text": "a"}}, "give a file"),
        ({"categories": []}, "at least one column"),
        ({"categories": "text"}, "no column twice"),
        ({"categories": ["a", "a"]}, "no column twice"),
        ({"categories": "mean"}, "'mean', as a column of the result is; rename it"),
    ],
)
def test_names_that_cannot_be_used_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Corpus(**{"source": [], **options})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,category\n", "no examples in .*a.csv"),
        ("a.csv", b"text,category\na\n", "every example needs a category"),
        ("a.csv", b"text,category\na,b,c\na,b,c,d\n", "cannot be read as csv"),
        (
            "a.csv",
            "text,category\nfine,b\nsch\xf6n,b\n".encode("latin-1"),
            "line 3, is not UTF-8: byte 25 is 0xf6, .*save it as UTF-8",
        ),
        ("a.jsonl", '{"text": "sch\xf6n"}\n'.encode("latin-1"), "line 1, is not UTF-8: byte 14 is 0xf6"),
        ("a.jsonl", b'{"text": "a", "category": "b"}\n{"text":', "line 2: .*one JSON object"),
        ("a.jsonl", b"3\n", "it is int"),
        ("a.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("a.txt", b"a", "must end in .csv"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        Corpus(tmp_path / name).survey()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        Corpus(tmp_path / "b.csv").survey()
    with pytest.raises(InputError, match=r"no file .*nowhere.csv"):
        Corpus(tmp_path / "nowhere.csv").survey()


def test_the_last_row_of_a_long_file_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,category\n" + "a,b\n" * 2500 + ",b\n")
    with pytest.raises(InputError, match="example 2501: 'text' is ''"):
        Corpus(path).survey()
