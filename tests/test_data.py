"""The data files: made by their script, balanced, well-formed, and refused when they are not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crosslens.adapters import InputError
from crosslens.tasks import data
from crosslens.tasks.data import make, read_prompts, read_stories

FOLDER = Path(data.__file__).parent


def test_the_script_makes_the_files_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "crosslens.tasks.data.make", str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in (".json", ".jsonl")}
    assert made == kept


def test_the_readme_names_every_file_and_its_licence() -> None:
    text = (FOLDER / "README.md").read_text()
    for name in make.contents():
        assert f"## {name}" in text
    assert "CC0-1.0" in text


def test_stories_are_balanced() -> None:
    stories = read_stories()
    assert len(stories) >= 200
    assert set(stories["attribute"]) == {"nationality", "gender", "age", "occupation"}
    assert stories["text"].is_unique
    templates = stories["template"].nunique()
    assert (stories.groupby(["attribute", "category"]).size() == templates).all()
    assert (stories["pair"] == stories["template"] + "-" + stories["attribute"]).all()


def test_only_the_attribute_changes_within_a_pair() -> None:
    pronouns = {"she", "her", "he", "him", "his", "they", "them", "their"}
    values = {word for row in make.ATTRIBUTES.values() for who in row.values() for word in who.phrase.split()}
    for pair, stories in read_stories().groupby("pair"):
        words = [re.findall(r"[\w-]+", text) for text in stories["text"]]
        allowed = values | pronouns if str(pair).endswith("gender") else values
        for other in words[1:]:
            assert len(other) == len(words[0])
            changed = [(a, b) for a, b in zip(words[0], other, strict=True) if a != b]
            assert changed
            assert {word.lower() for both in changed for word in both} <= {word.lower() for word in allowed}


def test_stories_are_well_formed_english_of_moderate_length() -> None:
    for text in read_stories()["text"]:
        assert 20 <= len(text.split()) <= 40
        assert text.count(". ") == 1
        assert text.endswith(".")
        assert all(sentence[0].isupper() for sentence in text.split(". "))
        assert not re.search(r"[{}]|  ", text)
        # "a" before a consonant, "an" before a vowel and before "hour"; no word here begins with a spoken "you"
        assert not re.search(r"\b[Aa] (?=[aeiouAEIOU]|hour|8|11\b|18\b)", text)
        assert not re.search(r"\b[Aa]n (?![aeiouAEIOU]|hour|8|11\b|18\b)", text)
        # singular they would need another verb form
        assert not re.search(r"\b(they|she|he) (is|are|was|were|has|have|does|do)\b", text, re.IGNORECASE)


def test_gender_decides_the_pronouns_and_nothing_else_has_them() -> None:
    used = {"woman": {"she", "her"}, "man": {"he", "him", "his"}}
    gendered = set().union(*used.values())
    for story in read_stories().itertuples():
        here = set(re.findall(r"\w+", str(story.text).lower())) & gendered
        assert here <= used.get(str(story.category), set())


def test_prompts_hold_two_names_and_repeat_one() -> None:
    prompts = read_prompts()
    assert len(prompts.templates) == 8
    assert len(set(prompts.names)) == len(prompts.names) >= 16
    example = prompts.templates["store"].format(A="Mary", B="John", S="John")
    assert example == "When Mary and John went to the store, John gave a drink to"
    assert not any(text.endswith(" ") for text in prompts.templates.values())


STORY = {"id": "a", "text": "t", "attribute": "age", "category": "25", "pair": "p", "template": "t"}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "holds no story"),
        (["{"], "line 1: .*one JSON object"),
        ([json.dumps(STORY), "[1]"], "line 2: a story is an object of texts id, text, attribute"),
        ([json.dumps(STORY | {"text": 3})], "line 1: a story is"),
        ([json.dumps({"id": "a", "text": "t"})], "line 1: a story is"),
        ([json.dumps(STORY), json.dumps(STORY)], "the id 'a' is there twice"),
        (
            [json.dumps(STORY | new) for new in ({}, {"id": "b", "category": "40"}, {"id": "c", "pair": "q"})],
            r"pair 'q' has {'25': 1, '40': 0} stories of each age",
        ),
    ],
)
def test_malformed_stories_are_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=says) as caught:
        read_stories(path)
    assert str(path) in str(caught.value)


TEMPLATE = {"id": "x", "text": "When {A} and {B} met, {S} gave it to"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "one JSON object"),
        ([], "an object with the lists"),
        ({"templates": [TEMPLATE]}, "an object with the lists"),
        ({"templates": [], "names": ["Mary"]}, "an object with the lists"),
        ({"templates": [TEMPLATE | {"text": "{A} and {B} met, {S} gave it to"}], "names": ["Mary"]}, "between spaces"),
        ({"templates": [TEMPLATE | {"text": "When {A} and {B} met"}], "names": ["Mary"]}, "between spaces"),
        ({"templates": [TEMPLATE], "names": ["Mary", "Mary"]}, "different names"),
        ({"templates": [TEMPLATE], "names": ["Mary Ann"]}, "letters only"),
        ({"templates": [TEMPLATE], "names": [3]}, "letters only"),
    ],
)
def test_malformed_prompts_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.jsonl", tmp_path, tmp_path / "latin.jsonl"):
        with pytest.raises(InputError, match="cannot be read"):
            read_stories(path)
        with pytest.raises(InputError, match="cannot be read"):
            read_prompts(path)
