"""The data of lens, steering, probe and generation: what it holds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crosslens.adapters import InputError
from crosslens.tasks.data.prompts import read_answers, read_registers, read_sentiment


def test_every_answer_is_asked_for_in_two_ways() -> None:
    answers = read_answers()
    assert len({answer.id for answer in answers}) == len({answer.answer for answer in answers}) == 16
    for answer in answers:
        assert answer.answer in answer.copied
        assert answer.answer not in answer.recalled
        assert not answer.recalled.endswith(" ")
    assert answers[0].copied == "The card says Paris. Once more, the card says"


def test_sentences_of_a_pair_differ_in_one_word_and_end_alike() -> None:
    sentiment = read_sentiment()
    assert len(sentiment.pairs) == 24
    differing = []
    for one, two in sentiment.pairs.values():
        words = list(zip(one.split(), two.split(), strict=True))
        differing += [word.strip(",.") for pair in words if pair[0] != pair[1] for word in pair]
        assert words[-1][0] == words[-1][1]
        assert one.endswith(".")
    assert len(set(differing)) == len(differing) == 48  # no word twice: a held-out pair has unseen words
    said = {word for opening in sentiment.openings for word in opening.split()}
    assert not said & {*sentiment.positive, *sentiment.negative}
    assert len(sentiment.positive) == len(sentiment.negative) == 10


def test_every_topic_fits_every_register() -> None:
    registers = read_registers()
    assert list(registers.registers) == ["story", "definition", "dialogue"]
    assert all(topic[0] not in "aeiou" for topic in registers.topics)  # after "a"


ANSWER = {"id": "a", "answer": "Paris", "recalled": "The capital of France is", "copied": "It says Paris. It says"}
PAIR = {"id": "a", "positive": "It was good.", "negative": "It was bad."}
SENTIMENT = {"pairs": [PAIR], "openings": ["It was"], "words": {"positive": ["good"], "negative": ["bad"]}}
REGISTERS = {"registers": {"a": "A {topic} is", "b": "See the {topic}:"}, "topics": ["dog", "cat"]}


@pytest.mark.parametrize(
    ("read", "content", "says"),
    [
        (read_answers, "{", "one JSON object"),
        (read_answers, [], "one JSON object with answers"),
        (read_answers, {"answers": []}, "'answers' must be a list that is not empty"),
        (read_answers, {"answers": [ANSWER | {"answer": 3}]}, "texts id, answer, recalled and copied"),
        (read_answers, {"answers": [ANSWER | {"answer": "Rome"}]}, "'a' must say its answer in 'copied'"),
        (read_answers, {"answers": [ANSWER | {"recalled": "Paris is"}]}, "and not in 'recalled'"),
        (read_answers, {"answers": [ANSWER, ANSWER]}, "the ids 'a' are there twice"),
        (read_sentiment, {"pairs": [PAIR]}, "with pairs, openings, words"),
        (read_sentiment, SENTIMENT | {"pairs": [PAIR | {"negative": "It is bad."}]}, "differ in one word"),
        (read_sentiment, SENTIMENT | {"pairs": [PAIR, PAIR]}, "the ids 'a' are there twice"),
        (read_sentiment, SENTIMENT | {"pairs": [[1]]}, "texts id, positive and negative"),
        (read_sentiment, SENTIMENT | {"openings": ["", "x"]}, "'openings' must be a list of texts"),
        (read_sentiment, SENTIMENT | {"words": {"positive": ["good"]}}, "lists positive and negative"),
        (read_sentiment, SENTIMENT | {"words": {"positive": ["so"], "negative": ["so"]}}, "the words 'so' are there"),
        (read_registers, REGISTERS | {"registers": {"a": "A dog is", "b": "{topic}"}}, "with {topic} once"),
        (read_registers, REGISTERS | {"topics": ["dog"]}, "2 registers and 1 topics"),
        (read_registers, REGISTERS | {"topics": ["dog", "dog"]}, "the topics 'dog' are there twice"),
    ],
)
def test_malformed_data_is_refused(tmp_path: Path, read: Callable[[Path], Any], content: Any, says: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for read in (read_answers, read_sentiment, read_registers):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / "missing.json")
