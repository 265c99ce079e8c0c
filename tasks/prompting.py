"""Where tokens meet words: the answer that comes next, and the positions of a phrase, for any tokenizer."""

from __future__ import annotations

from typing import Any

from crosslens.adapters import InputError


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with whatever the tokenizer puts around it."""
    return list(tokenizer(text)["input_ids"])


def fork(task: str, tokenizer: Any, text: str, words: tuple[str, str]) -> tuple[list[int], tuple[int, int]]:
    """The tokens that a text has in common before either of two words, and the token with which each goes on.

    Words of several tokens that begin alike make the prompt go on to where they part.

    Raises:
        InputError: the tokenizer writes both words alike.
    """
    one, two = (token_ids(tokenizer, f"{text} {word}") for word in words)
    parts = _common(one, two)
    if parts == min(len(one), len(two)):
        raise InputError(f"task {task!r}: the tokenizer writes {words[0]!r} and {words[1]!r} alike after {text!r}")
    return one[:parts], (one[parts], two[parts])


def before_answer(task: str, tokenizer: Any, text: str, word: str) -> tuple[list[int], int]:
    """The tokens of a text that stay when a word comes next, and the token with which that word begins.

    Raises:
        InputError: the tokenizer makes nothing of the text or of the word.
    """
    alone, longer = token_ids(tokenizer, text), token_ids(tokenizer, f"{text} {word}")
    parts = _common(alone, longer)
    if not 0 < parts < len(longer):
        raise InputError(f"task {task!r}: the tokenizer makes no prompt of {text!r} that {word!r} could follow")
    return longer[:parts], longer[parts]


def span(task: str, tokenizer: Any, before: str, phrase: str, after: str) -> range:
    """Positions of a phrase among the tokens of the text before + phrase + after.

    Raises:
        InputError: the tokenizer has no token for it.
    """
    whole = token_ids(tokenizer, before + phrase + after)
    begin = _common(whole, token_ids(tokenizer, before.rstrip()))
    end = _common(whole, token_ids(tokenizer, before + phrase))
    if begin >= end:
        raise InputError(f"task {task!r}: the tokenizer has no token for {phrase!r} in {before + phrase + after!r}")
    return range(begin, end)


def _common(one: list[int], two: list[int]) -> int:
    """How many tokens both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return next(differ, min(len(one), len(two)))
