"""The texts of agreement-v1.json and facts-v1.json, which `make.py` writes to files."""

from __future__ import annotations

import json

AGREEMENT_FILE = "agreement-v1.json"
FACTS_FILE = "facts-v1.json"

# {subject} and {attractor} stand for a noun, singular or plural. Forms such as man and men, which are equally long, are
# equally many tokens even where each letter is one.
SENTENCES: dict[str, tuple[str, tuple[str, str], tuple[str, str]]] = {
    "key": ("The {subject} to the {attractor}", ("key", "keys"), ("cabinet", "cabinets")),
    "man": ("The {subject} behind the {attractor}", ("man", "men"), ("car", "cars")),
    "author": ("The {subject} of the {attractor}", ("author", "authors"), ("book", "books")),
    "woman": ("The {subject} near the {attractor}", ("woman", "women"), ("tree", "trees")),
    "picture": ("The {subject} of the {attractor}", ("picture", "pictures"), ("farmer", "farmers")),
    "fisherman": ("The {subject} on the {attractor}", ("fisherman", "fishermen"), ("boat", "boats")),
    "door": ("The {subject} to the {attractor}", ("door", "doors"), ("room", "rooms")),
    "policeman": ("The {subject} by the {attractor}", ("policeman", "policemen"), ("house", "houses")),
    "owner": ("The {subject} of the {attractor}", ("owner", "owners"), ("shop", "shops")),
    "letter": ("The {subject} from the {attractor}", ("letter", "letters"), ("lawyer", "lawyers")),
    "road": ("The {subject} to the {attractor}", ("road", "roads"), ("village", "villages")),
    "roof": ("The {subject} of the {attractor}", ("roof", "roofs"), ("building", "buildings")),
}
VERBS = ("is", "are")

# {subject} is what the fact is about; the answer is the next word.
FACTS: dict[str, tuple[str, str, str]] = {
    "france": ("The capital of {subject} is the city of", "France", "Paris"),
    "eiffel": ("The {subject} is located in the city of", "Eiffel Tower", "Paris"),
    "colosseum": ("The {subject} is located in the city of", "Colosseum", "Rome"),
    "kenya": ("The capital of {subject} is the city of", "Kenya", "Nairobi"),
    "picchu": ("{subject} is located in the country of", "Machu Picchu", "Peru"),
    "germany": ("The capital of {subject} is the city of", "Germany", "Berlin"),
    "opera": ("The {subject} is located in the country of", "Sydney Opera House", "Australia"),
    "greece": ("The capital of {subject} is the city of", "Greece", "Athens"),
    "pisa": ("The {subject} is located in the country of", "Leaning Tower of Pisa", "Italy"),
    "japan": ("The capital of {subject} is the city of", "Japan", "Tokyo"),
    "giza": ("The {subject} is located in the country of", "Great Pyramid of Giza", "Egypt"),
    "cuba": ("The capital of {subject} is the city of", "Cuba", "Havana"),
}


def contents() -> dict[str, str]:
    """File name -> text of both files."""
    sentences = [
        {"id": key, "text": text, "subject": list(subject), "attractor": list(attractor)}
        for key, (text, subject, attractor) in SENTENCES.items()
    ]
    facts = [{"id": k, "text": text, "subject": subject, "answer": a} for k, (text, subject, a) in FACTS.items()]
    return {
        AGREEMENT_FILE: json.dumps({"sentences": sentences, "verbs": list(VERBS)}, indent=1) + "\n",
        FACTS_FILE: json.dumps({"facts": facts}, indent=1) + "\n",
    }
