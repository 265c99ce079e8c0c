"""The data that tasks run on: versioned files beside this module, read and checked here. See README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters.errors import InputError

_FOLDER = Path(__file__).parent
_STORY_COLUMNS = ("id", "text", "attribute", "category", "pair", "template")


@dataclass(frozen=True)
class Prompts:
    """Prompts for indirect object identification.

    Attributes:
        templates: id -> text with {A} and {B}, two names, and {S}, which repeats one of them.
        names: first names.
    """

    templates: Mapping[str, str]
    names: tuple[str, ...]


def read_stories(path: Path = _FOLDER / "characters-v1.jsonl") -> pd.DataFrame:
    """Short stories in which only an attribute of the character changes, one a row.

    Columns, all text: id; text; attribute; category, the attribute's value; pair, the stories that differ in the
    category alone; template, the story told.

    Raises:
        InputError: the file cannot be read, a line is no story, or the stories are not balanced: every pair must hold
            every category of its attribute exactly once.
    """
    stories = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            story = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; each line must be one JSON object") from error
        if not _is_record(story, _STORY_COLUMNS):
            raise InputError(f"{path}, line {number}: a story is an object of texts {', '.join(_STORY_COLUMNS)}")
        stories.append(story)
    table = pd.DataFrame(stories, columns=list(_STORY_COLUMNS))
    if not len(table):
        raise InputError(f"{path} holds no story")
    if table["id"].duplicated().any():
        raise InputError(f"{path}: the id {table['id'][table['id'].duplicated()].iloc[0]!r} is there twice")
    for attribute, group in table.groupby("attribute"):
        counts = pd.crosstab(group["pair"], group["category"])
        for pair, row in counts[(counts != 1).any(axis=1)].iterrows():
            raise InputError(
                f"{path}: pair {pair!r} has {row.to_dict()} stories of each {attribute}; it must have one of each"
            )
    return table


def read_prompts(path: Path = _FOLDER / "ioi-v1.json") -> Prompts:
    """Prompts and names for indirect object identification.

    Raises:
        InputError: the file cannot be read, or holds no templates with their slots between spaces and no names.
    """
    text = _read(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}; it must be one JSON object") from error
    if not isinstance(content, dict) or not _is_list(content.get("templates")) or not _is_list(content.get("names")):
        raise InputError(f"{path}: it must be an object with the lists 'templates' and 'names', neither empty")
    templates, names = content["templates"], content["names"]
    for template in templates:
        if not _is_record(template, ("id", "text")) or any(
            template["text"].count(f" {{{slot}}} ") != 1 for slot in "ABS"
        ):
            raise InputError(
                f"{path}: template {template!r} must be an object of texts id and text, with {{A}}, {{B}} and {{S}} "
                "once each, all between spaces"
            )
    if not all(isinstance(name, str) and name.isalpha() for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: 'names' must be different names of letters only")
    return Prompts({template["id"]: template["text"] for template in templates}, tuple(names))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the data file {path} cannot be read: {error}") from error


def _is_record(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and set(value) == set(keys) and all(isinstance(value[key], str) for key in keys)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)
