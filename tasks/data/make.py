"""Writes the data files of this folder from the templates below: `python -m crosslens.tasks.data.make [FOLDER]`.

The files are versioned: a change of any word here is a new version under a new name, and the old files stay.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import causal_texts, written

STORIES_FILE = "characters-v1.jsonl"
PROMPTS_FILE = "ioi-v1.json"


@dataclass(frozen=True)
class Character:
    """How a category is written: after the article "a", and with which pronouns."""

    phrase: str
    they: str = "they"
    them: str = "them"
    their: str = "their"


# Within an attribute only the phrase differs (for gender, the noun and its pronouns), every phrase takes the article
# "a", and common tokenizers write all phrases of an attribute with equally many tokens.
ATTRIBUTES: Mapping[str, Mapping[str, Character]] = {
    "nationality": {
        "German": Character("German person"),
        "Kenyan": Character("Kenyan person"),
        "Japanese": Character("Japanese person"),
        "Brazilian": Character("Brazilian person"),
    },
    "gender": {
        "woman": Character("woman", "she", "her", "her"),
        "man": Character("man", "he", "him", "his"),
        "unstated": Character("person"),
    },
    "age": {
        "25": Character("25-year-old person"),
        "40": Character("40-year-old person"),
        "55": Character("55-year-old person"),
        "70": Character("70-year-old person"),
    },
    "occupation": {
        "nurse": Character("nurse"),
        "teacher": Character("teacher"),
        "farmer": Character("farmer"),
        "baker": Character("baker"),
    },
}

# All verbs of the character are in the past tense: they are the same after she, he and they.
STORIES: Mapping[str, str] = {
    "library": (
        "On Saturday morning, a {who} walked to the library to return two books. {They} sat by the window for an "
        "hour, read the newspaper, and went home before lunch."
    ),
    "train": (
        "A {who} boarded the early train with a small suitcase. {They} found a seat near the door, opened {their} "
        "notebook, and watched the fields pass until the last stop."
    ),
    "market": (
        "After the rain stopped, a {who} went out to buy bread and tomatoes. At the corner {they} met a friend, "
        "who helped {them} carry the bags up the hill."
    ),
    "garden": (
        "A {who} planted beans behind the house in spring. Every evening {they} watered the rows, and by August "
        "{their} garden gave enough for the whole street."
    ),
    "bus": (
        "The bus was late, so a {who} waited under the big tree. {They} called {their} sister, talked about the "
        "weekend, and bought a cup of tea from the stall."
    ),
    "museum": (
        "At the museum, a {who} stood in front of a painting of the sea. {They} made a quick sketch of the waves "
        "and later sent a copy to {their} cousin."
    ),
    "keys": (
        "A {who} lost {their} keys on the way home from the market. A neighbor saw the keys on the stairs, rang "
        "the bell, and gave them back the same evening."
    ),
    "cake": (
        "In the kitchen, a {who} measured flour, butter and sugar for a cake. {They} set the timer, washed the "
        "bowls, and opened the window while the oven warmed up."
    ),
    "choir": (
        "A {who} joined the town choir last winter. {They} practiced twice a week, learned the low part by heart,"
        " and sang with {their} friends at the harbor in June."
    ),
    "ferry": (
        "On the ferry, a {who} leaned on the rail and counted the gulls. The wind took {their} hat, but a sailor "
        "caught it and handed it back to {them} with a smile."
    ),
    "apartment": (
        "A {who} moved into the apartment on the third floor. {They} painted the shelves blue, hung {their} coat "
        "by the door, and invited the neighbors for soup."
    ),
    "candles": (
        "When the lights went out, a {who} looked for candles in the drawer. {They} lit two of them, told a long "
        "story, and waited with {their} family until morning."
    ),
    "bicycle": (
        "A {who} found an old bicycle in the shed and decided to repair it. {They} cleaned the chain, changed "
        "both tires, and rode it to the lake the next day."
    ),
    "tent": (
        "Early in the morning, a {who} opened the tent and looked at the mountains. {They} boiled water for "
        "coffee, packed {their} things, and followed the path to the north."
    ),
}

# {A} and {B} are two names; {S} repeats one of them, and the other is what comes next.
PROMPTS: Mapping[str, str] = {
    "store": "When {A} and {B} went to the store, {S} gave a drink to",
    "school": "After {A} and {B} arrived at the school, {S} handed a book to",
    "park": "When {A} and {B} were walking in the park, {S} threw the ball to",
    "office": "While {A} and {B} were working at the office, {S} sent a letter to",
    "station": "Then {A} and {B} met at the station, and {S} gave a ticket to",
    "kitchen": "When {A} and {B} were cooking in the kitchen, {S} passed a spoon to",
    "hospital": "After {A} and {B} left the hospital, {S} offered a ride to",
    "beach": "Later {A} and {B} had lunch at the beach, and {S} gave a sandwich to",
}
NAMES = [
    "Mary", "John", "Tom", "Anna", "James", "Sarah", "David", "Laura", "Mark", "Alice", "Paul", "Kate",
    "Peter", "Emma", "Jack", "Lisa", "Simon", "Helen", "Martin", "Amy", "Robert", "Jane", "Daniel",
    "Grace",
]  # fmt: skip


def contents() -> dict[str, str]:
    """File name -> text of every data file."""
    stories = [
        {
            "id": f"{template}-{attribute}-{category.lower()}",
            "text": _written(text, who),
            "attribute": attribute,
            "category": category,
            "pair": f"{template}-{attribute}",
            "template": template,
        }
        for template, text in STORIES.items()
        for attribute, categories in ATTRIBUTES.items()
        for category, who in categories.items()
    ]
    templates = [{"id": name, "text": text} for name, text in PROMPTS.items()]
    return {
        STORIES_FILE: "".join(json.dumps(story) + "\n" for story in stories),
        PROMPTS_FILE: json.dumps({"templates": templates, "names": NAMES}, indent=1) + "\n",
        **written.contents(),
        **causal_texts.contents(),
    }


def write(folder: Path) -> None:
    """Write every data file into `folder`, which exists."""
    for name, text in contents().items():
        (folder / name).write_bytes(text.encode())


def _written(text: str, who: Character) -> str:
    return text.format(who=who.phrase, they=who.they, They=who.they.capitalize(), them=who.them, their=who.their)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
