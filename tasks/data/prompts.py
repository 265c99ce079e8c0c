"""Readers of lens-v1.json, sentiment-v1.json and registers-v1.json. See README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters.errors import InputError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """One answer, asked for in two ways.

    Attributes:
        id: unique.
        answer: the word that comes next.
        recalled: a prompt that asks for it from memory.
        copied: a prompt that has said it before.
    """

    id: str
    answer: str
    recalled: str
    copied: str


@dataclass(frozen=True)
class Sentiment:
    """Sentences of two sentiments, and what a steered model is asked and judged by.

    Attributes:
        pairs: id -> (positive, negative) sentence; they differ in one word.
        openings: neutral beginnings of sentences.
        positive, negative: words.
    """

    pairs: Mapping[str, tuple[str, str]]
    openings: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class Registers:
    """Openings that ask for different kinds of text about the same topics.

    Attributes:
        registers: name -> opening, with {topic}.
        topics: nouns that take the article "a".
    """

    registers: Mapping[str, str]
    topics: tuple[str, ...]


def read_answers(path: Path = _FOLDER / "lens-v1.json") -> list[Answer]:
    """Answers that are recalled in one prompt and copied in another.

    Raises:
        InputError: the file cannot be read or is malformed, or an answer is not where it must and must not be.
    """
    content = _object(path, "answers")
    answers = []
    for record in _list(path, content, "answers"):
        if not _is_texts(record) or set(record) != {"id", "answer", "recalled", "copied"}:
            raise InputError(f"{path}: {record!r} must be an object of texts id, answer, recalled and copied")
        if record["answer"] not in record["copied"] or record["answer"] in record["recalled"]:
            raise InputError(f"{path}: {record['id']!r} must say its answer in 'copied', and not in 'recalled'")
        answers.append(Answer(**record))
    _distinct(path, [answer.id for answer in answers], "ids")
    return answers


def read_sentiment(path: Path = _FOLDER / "sentiment-v1.json") -> Sentiment:
    """Sentences, openings and words of two sentiments.

    Raises:
        InputError: the file cannot be read or is malformed, or the sentences of a pair do not differ in one word.
    """
    content = _object(path, "pairs", "openings", "words")
    pairs = {}
    for record in _list(path, content, "pairs"):
        if not _is_texts(record) or set(record) != {"id", "positive", "negative"}:
            raise InputError(f"{path}: {record!r} must be an object of texts id, positive and negative")
        one, two = record["positive"].split(), record["negative"].split()
        if len(one) != len(two) or sum(a != b for a, b in zip(one, two, strict=True)) != 1:
            raise InputError(f"{path}: the sentences of {record['id']!r} must differ in one word")
        pairs[record["id"]] = (record["positive"], record["negative"])
    _distinct(path, [record["id"] for record in content["pairs"]], "ids")
    openings = _texts(path, content, "openings")
    words = content["words"]
    if not isinstance(words, dict) or set(words) != {"positive", "negative"}:
        raise InputError(f"{path}: 'words' must be an object with the lists positive and negative")
    positive, negative = (_texts(path, words, key) for key in ("positive", "negative"))
    _distinct(path, [*positive, *negative], "words")
    return Sentiment(pairs, openings, positive, negative)


def read_registers(path: Path = _FOLDER / "registers-v1.json") -> Registers:
    """Openings of different kinds of text, and topics.

    Raises:
        InputError: the file cannot be read or is malformed, or there are fewer than two registers or topics.
    """
    content = _object(path, "registers", "topics")
    registers, topics = content["registers"], _texts(path, content, "topics")
    if not _is_texts(registers) or any(text.count("{topic}") != 1 for text in registers.values()):
        raise InputError(f"{path}: 'registers' must be an object of texts, each with {{topic}} once")
    if min(len(registers), len(topics)) < 2:
        raise InputError(f"{path} has {len(registers)} registers and {len(topics)} topics; it needs two of each")
    return Registers(registers, topics)


def _object(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the data file {path} cannot be read: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; it must be one JSON object") from error
    if not isinstance(content, dict) or set(content) != set(keys):
        raise InputError(f"{path}: it must be one JSON object with {', '.join(keys)}")
    return content


def _list(path: Path, content: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(content[key], list) or not content[key]:
        raise InputError(f"{path}: {key!r} must be a list that is not empty")
    return list(content[key])


def _texts(path: Path, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = _list(path, content, key)
    if not all(isinstance(text, str) and text for text in found):
        raise InputError(f"{path}: {key!r} must be a list of texts")
    _distinct(path, found, key)
    return tuple(found)


def _distinct(path: Path, found: list[str], what: str) -> None:
    if twice := sorted({each for each in found if found.count(each) > 1}):
        raise InputError(f"{path}: the {what} {', '.join(map(repr, twice))} are there twice")


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(text, str) and text for text in value.values())
