"""Readers of agreement-v1.json and facts-v1.json. See README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters.errors import InputError

from .prompts import _distinct, _is_texts, _list, _object

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Sentence:
    """The beginning of a sentence, up to its verb.

    Attributes:
        id: unique.
        text: with {subject} and {attractor}.
        subject, attractor: singular and plural of a noun.
    """

    id: str
    text: str
    subject: tuple[str, str]
    attractor: tuple[str, str]

    def filled(self, subject: int, attractor: int) -> str:
        """The text with each noun in the singular (0) or the plural (1)."""
        return self.text.format(subject=self.subject[subject], attractor=self.attractor[attractor])


@dataclass(frozen=True)
class Agreement:
    """Beginnings of sentences, and the verb that may follow, singular and plural."""

    sentences: tuple[Sentence, ...]
    verbs: tuple[str, str]


@dataclass(frozen=True)
class Fact:
    """A statement without its last word.

    Attributes:
        id: unique.
        text: with {subject}.
        subject: what the fact is about.
        answer: the word that comes next.
    """

    id: str
    text: str
    subject: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text about its subject."""
        return self.text.format(subject=self.subject)


def read_agreement(path: Path = _FOLDER / "agreement-v1.json") -> Agreement:
    """Beginnings of sentences whose subject and attractor are singular or plural.

    Raises:
        InputError: the file cannot be read or is malformed, a text lacks a slot, or two forms are the same.
    """
    content = _object(path, "sentences", "verbs")
    sentences = []
    for record in _list(path, content, "sentences"):
        if not isinstance(record, dict) or set(record) != {"id", "text", "subject", "attractor"}:
            raise InputError(f"{path}: {record!r} must be an object with id, text, subject and attractor")
        nouns = {key: _forms(path, record, key) for key in ("subject", "attractor")}
        _has_slots(path, record, "subject", "attractor")
        sentences.append(Sentence(record["id"], record["text"], **nouns))
    _distinct(path, [sentence.id for sentence in sentences], "ids")
    return Agreement(tuple(sentences), _forms(path, content, "verbs"))


def read_facts(path: Path = _FOLDER / "facts-v1.json") -> list[Fact]:
    """Statements whose last word is left to be said.

    Raises:
        InputError: the file cannot be read or is malformed, a text lacks its slot, or says its answer.
    """
    facts = []
    for record in _list(path, _object(path, "facts"), "facts"):
        if not _is_texts(record) or set(record) != {"id", "text", "subject", "answer"}:
            raise InputError(f"{path}: {record!r} must be an object of texts id, text, subject and answer")
        _has_slots(path, record, "subject")
        fact = Fact(**record)
        if fact.answer in fact.prompt:
            raise InputError(f"{path}: {fact.id!r} says its answer {fact.answer!r} in the prompt")
        facts.append(fact)
    _distinct(path, [fact.id for fact in facts], "ids")
    return facts


def _forms(path: Path, record: Mapping[str, Any], key: str) -> tuple[str, str]:
    forms = record[key]
    if not isinstance(forms, list) or len(forms) != 2 or not all(isinstance(f, str) and f for f in forms):
        raise InputError(f"{path}: {key!r} is {forms!r}; it must be two words, singular and plural")
    if forms[0] == forms[1]:
        raise InputError(f"{path}: {key!r} has {forms[0]!r} for singular and plural")
    return forms[0], forms[1]


def _has_slots(path: Path, record: Mapping[str, Any], *slots: str) -> None:
    text = record["text"]
    texts = isinstance(text, str) and isinstance(record["id"], str)
    if not texts or any(text.count(f"{{{slot}}}") != 1 for slot in slots):
        raise InputError(f"{path}: {record!r} must have an id and a text with {' and '.join(slots)} in braces, once")
