"""The data of agreement and facts, and where its words stand among tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters import InputError
from crosslens.adapters.conformance.models import tiny_tokenizer
from crosslens.tasks.data.causal import read_agreement, read_facts
from crosslens.tasks.prompting import before_answer, fork, span

TOKENIZER = tiny_tokenizer()


def test_sentences_have_a_singular_and_a_plural() -> None:
    data = read_agreement()
    assert data.verbs == ("is", "are")
    assert len(data.sentences) == 12
    assert data.sentences[0].filled(0, 1) == "The key to the cabinets"
    assert data.sentences[0].filled(1, 0) == "The keys to the cabinet"
    for sentence in data.sentences:
        assert {sentence.filled(s, a).split()[1] for s in range(2) for a in range(2)} == set(sentence.subject)
        assert sentence.attractor[1] == sentence.attractor[0] + "s"
    equally_long = [s for s in data.sentences if len(s.subject[0]) == len(s.subject[1])]
    assert len(equally_long) == 4


def test_facts_leave_their_answer_to_be_said() -> None:
    facts = read_facts()
    assert len({fact.id for fact in facts}) == len({(f.subject, f.answer) for f in facts}) == 12
    assert facts[0].prompt == "The capital of France is the city of"
    for fact in facts:
        assert fact.prompt.count(fact.subject) == 1
        assert fact.answer not in fact.prompt
        assert not fact.prompt.endswith(fact.subject)
        assert not fact.prompt.endswith(" ")


SENTENCE = {"id": "a", "text": "The {subject} of {attractor}", "subject": ["b", "bs"], "attractor": ["c", "cs"]}
FACT = {"id": "a", "text": "{subject} is", "subject": "b", "answer": "c"}


def agreement(**new: Any) -> dict[str, Any]:
    return {"sentences": [SENTENCE | new], "verbs": ["is", "are"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "one JSON object"),
        ({"sentences": []}, "with sentences, verbs"),
        ({"sentences": [], "verbs": ["is", "are"]}, "not empty"),
        ({"sentences": [3], "verbs": ["is", "are"]}, "an object with id, text, subject and attractor"),
        (agreement(more=1), "an object with id"),
        (agreement(subject="key"), "'subject' is 'key'; it must be two words"),
        (agreement(subject=["sheep", "sheep"]), "'sheep' for singular and plural"),
        (agreement(text="The {subject}"), "subject and attractor in braces, once"),
        (agreement(text=None), "must have an id and a text"),
        (agreement(id=3), "must have an id and a text"),
        ({"sentences": [SENTENCE, SENTENCE], "verbs": ["is", "are"]}, "the ids 'a' are there twice"),
        ({"sentences": [SENTENCE], "verbs": ["is"]}, "'verbs' is"),
    ],
)
def test_malformed_sentences_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "agreement.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        read_agreement(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "not empty"),
        ([FACT | {"answer": 3}], "an object of texts id, text, subject and answer"),
        ([{"id": "a"}], "an object of texts id, text, subject and answer"),
        ([FACT | {"text": "is"}], "subject in braces, once"),
        ([FACT | {"answer": "is"}], "says its answer 'is' in the prompt"),
        ([FACT, FACT], "the ids 'a' are there twice"),
    ],
)
def test_malformed_facts_are_refused(tmp_path: Path, records: Any, says: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"facts": records}))
    with pytest.raises(InputError, match=says):
        read_facts(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_facts(tmp_path / "missing.json")


WORDS = st.text(st.characters(categories=["Lu", "Ll"]), min_size=1, max_size=8)


@given(text=WORDS, words=st.tuples(WORDS, WORDS))
def test_a_prompt_forks_where_the_words_part(text: str, words: tuple[str, str]) -> None:
    one, two = (list(TOKENIZER(f"{text} {word}")["input_ids"]) for word in words)
    if words[0].startswith(words[1]) or words[1].startswith(words[0]):
        with pytest.raises(InputError, match="alike after"):
            fork("x", TOKENIZER, text, words)
        return
    ids, tokens = fork("x", TOKENIZER, text, words)
    assert [one[: len(ids)], two[: len(ids)]] == [ids, ids]
    assert (one[len(ids)], two[len(ids)]) == tokens
    assert tokens[0] != tokens[1]


@given(text=WORDS, word=WORDS)
def test_an_answer_begins_where_the_prompt_ends(text: str, word: str) -> None:
    ids, token = before_answer("x", TOKENIZER, text, word)
    assert TOKENIZER.decode(ids) == text
    assert list(TOKENIZER(f"{text} {word}")["input_ids"])[len(ids)] == token


@given(before=WORDS, phrase=WORDS, after=WORDS)
def test_the_span_of_a_phrase(before: str, phrase: str, after: str) -> None:
    here = span("x", TOKENIZER, f"{before} ", phrase, f" {after}")
    ids = TOKENIZER(f"{before} {phrase} {after}")["input_ids"]
    assert TOKENIZER.decode(ids[here.start : here.stop]) == f" {phrase}"
    assert span("x", TOKENIZER, "", phrase, f" {after}").start == 0


def test_what_a_tokenizer_cannot_write_is_refused() -> None:
    def nothing(text: str) -> dict[str, list[int]]:
        return {"input_ids": [7] if text.startswith("The") else []}

    with pytest.raises(InputError, match="no token for 'key' in 'The key is'"):
        span("x", nothing, "The ", "key", " is")
    with pytest.raises(InputError, match="no prompt of 'The' that 'key' could follow"):
        before_answer("x", nothing, "The", "key")
    with pytest.raises(InputError, match="no prompt of '' that 'key' could follow"):
        before_answer("x", nothing, "", "key")
