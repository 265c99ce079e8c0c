"""The texts of lens-v1.json, sentiment-v1.json and registers-v1.json, which `make.py` writes to files."""

from __future__ import annotations

import json
from collections.abc import Mapping

LENS_FILE = "lens-v1.json"
SENTIMENT_FILE = "sentiment-v1.json"
REGISTERS_FILE = "registers-v1.json"

# What is recalled, and its answer; the copied prompt says the answer before it asks for it.
RECALLED: Mapping[str, tuple[str, str]] = {
    "france": ("The capital of France is", "Paris"),
    "darwin": ("The theory of evolution was proposed by Charles", "Darwin"),
    "japan": ("The capital of Japan is", "Tokyo"),
    "einstein": ("The theory of relativity was developed by Albert", "Einstein"),
    "italy": ("The capital of Italy is", "Rome"),
    "washington": ("The first president of the United States was George", "Washington"),
    "england": ("The capital of England is", "London"),
    "newton": ("The law of gravity was discovered by Isaac", "Newton"),
    "germany": ("The capital of Germany is", "Berlin"),
    "bell": ("The telephone was invented by Alexander Graham", "Bell"),
    "russia": ("The capital of Russia is", "Moscow"),
    "pyramids": ("The pyramids were built in ancient", "Egypt"),
    "china": ("The capital of China is", "Beijing"),
    "romeo": ("Shakespeare wrote Romeo and", "Juliet"),
    "planet": ("The largest planet in the solar system is", "Jupiter"),
    "symbol": ("The chemical symbol O stands for", "oxygen"),
}
COPIED = "The {thing} says {answer}. Once more, the {thing} says"
THINGS = ("card", "sign", "label", "board")

# In {} stands the first word in the positive sentence and the second in the negative one.
SENTENCES: tuple[tuple[str, str, str], ...] = (
    ("The film was {}, and we talked about it on the way home.", "wonderful", "terrible"),
    ("The soup tasted {}, and the bowl stood on the table.", "delicious", "disgusting"),
    ("Her speech was {}, and it lasted about an hour.", "brilliant", "awful"),
    ("The hotel room was {}, and it looked out on the street.", "lovely", "horrible"),
    ("The weather was {} when the ship left the port.", "beautiful", "dreadful"),
    ("His new book is {}, as the paper wrote on Friday.", "excellent", "worthless"),
    ("The children were {} when the bus came to the school.", "happy", "sad"),
    ("Our guide was {} and walked in front of the group.", "friendly", "rude"),
    ("The concert was {}, and it ended at ten.", "fantastic", "boring"),
    ("The old car is {} and stands in front of the house.", "reliable", "useless"),
    ("The meal was {} by the time the guests arrived.", "perfect", "ruined"),
    ("The doctor had {} news for the family in the waiting room.", "good", "bad"),
    ("The team played a {} match in front of the home crowd.", "great", "poor"),
    ("The garden looked {} in the light of the evening.", "gorgeous", "ugly"),
    ("My neighbor is {} to the animals on the farm.", "kind", "cruel"),
    ("The journey was {} and took most of the day.", "pleasant", "painful"),
    ("The teacher {} the boy who sat by the window.", "praised", "scolded"),
    ("I {} the song that they play on the radio.", "love", "hate"),
    ("The plan was a {}, and everyone in town knew it.", "success", "failure"),
    ("The puppy felt {} in the house by the lake.", "safe", "scared"),
    ("The letter brought {} to everyone in the village.", "joy", "grief"),
    ("The service was {}, and the bill came with the coffee.", "superb", "lousy"),
    ("She gave a {} answer and went back to work.", "cheerful", "gloomy"),
    ("The water in the bay is {}, as visitors say.", "clean", "filthy"),
)
OPENINGS = (
    "The food in this place is",
    "The movie that we saw was",
    "My day at work was",
    "People say that the town is",
    "I think that the new house is",
    "The answer that she gave was",
)
WORDS: Mapping[str, tuple[str, ...]] = {
    "positive": ("good", "great", "wonderful", "happy", "beautiful", "excellent", "best", "nice", "perfect", "love"),
    "negative": ("bad", "terrible", "horrible", "sad", "ugly", "awful", "worst", "poor", "boring", "hate"),
}

REGISTERS: Mapping[str, str] = {
    "story": "Once upon a time there was a {topic} that",
    "definition": "According to the dictionary, a {topic} is",
    "dialogue": '"Did you see the {topic}?" she asked.',
}
TOPICS = ("river", "horse", "bridge", "clock", "garden", "ship", "letter", "candle")


def contents() -> dict[str, str]:
    """File name -> text."""
    answers = [
        {
            "id": name,
            "answer": answer,
            "recalled": text,
            "copied": COPIED.format(thing=THINGS[i % len(THINGS)], answer=answer),
        }
        for i, (name, (text, answer)) in enumerate(RECALLED.items())
    ]
    pairs = [
        {"id": f"{positive}-{negative}", "positive": text.format(positive), "negative": text.format(negative)}
        for text, positive, negative in SENTENCES
    ]
    sentiment = {"pairs": pairs, "openings": OPENINGS, "words": WORDS}
    registers = {"registers": REGISTERS, "topics": TOPICS}
    files = {LENS_FILE: {"answers": answers}, SENTIMENT_FILE: sentiment, REGISTERS_FILE: registers}
    return {name: json.dumps(content, indent=1) + "\n" for name, content in files.items()}
