"""What is cited can be found: the paper's bibliography, the sources named in the code, and how crosslens is cited."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)
CITED = re.compile(r"\\cite\w*\{([^}]*)\}")
ARXIV = re.compile(r"arXiv:(\d\d)(\d\d)\.(\d{4,5})(?:v\d+)?(?![\d.])")
DOI = re.compile(r"10\.\d{4,}/\S+")
NAMED = re.compile(
    r"(?P<who>[A-Z]\w+)(?: et al\.| (?:and|&) [A-Z]\w+)? (?P<year>(?:19|20)\d\d), (?P<id>arXiv:[\d.]+\d)"
)
PLACES = {"journal", "booktitle", "howpublished", "publisher"}


def bibliography() -> dict[str, dict[str, str]]:
    """Each entry's fields by its key; an entry that is given again, or that is not read whole, is an error."""
    text = (ROOT / "paper" / "references.bib").read_text(encoding="utf-8")
    entries: dict[str, dict[str, str]] = {}
    for _, key, body in ENTRY.findall(text):
        assert key not in entries, f"{key} is given more than once"
        entries[key] = dict(FIELD.findall(body))
        assert len(entries[key]) == len(body.splitlines()), f"{key}: a line is not `  field = {{value}},`"
    assert len(entries) == text.count("@"), "an entry is not read"
    return entries


def arxiv_year(found: re.Match[str]) -> int:
    """The year in which that number was given; ids have had this form since April 2007."""
    assert 1 <= int(found[2]) <= 12, found[0]
    return 2000 + int(found[1])


def test_the_paper_cites_its_bibliography_and_no_more() -> None:
    sources = [ROOT / "paper" / "crosslens.tex", *(ROOT / "paper").rglob("text/*.tex")]
    cited = {
        key.strip()
        for path in [*sources, *(ROOT / "paper" / "generated").rglob("*.tex")]
        for keys in CITED.findall(path.read_text(encoding="utf-8"))
        for key in keys.split(",")
    }
    assert cited == set(bibliography())


@pytest.mark.parametrize("key", bibliography())
def test_an_entry_says_who_what_when_and_where(key: str) -> None:
    fields = bibliography()[key]
    assert {"author", "title", "year"} <= set(fields)
    assert PLACES & set(fields), "it says nowhere to find it"
    assert re.fullmatch(r"(19|20)\d\d|n\.d\.", fields["year"])
    for name in fields["author"].split(" and "):
        assert name == "others" or "," in name or name.startswith("{"), f"{name}: not `Last, First`"
    assert "doi" not in fields or DOI.fullmatch(fields["doi"])
    for field in ("howpublished", "note"):
        for found in ARXIV.finditer(fields.get(field, "")):
            assert arxiv_year(found) <= int(fields["year"]) <= arxiv_year(found) + 2, "the year is not that of the id"
        assert fields.get(field, "").count("arXiv") == len(ARXIV.findall(fields.get(field, ""))), "not an arXiv id"


def test_the_code_names_a_source_the_same_way_everywhere() -> None:
    """Under one name and year, which is that of its arXiv id or, of what was published after, soon after that."""
    names: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for path in (path for folder in ("adapters", "tasks", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        prose = re.sub(r'"?\s*\n\s*"?', " ", path.read_text(encoding="utf-8"))
        for found in NAMED.finditer(re.sub(r"\s+", " ", prose)):
            names[found["id"]].add((found["who"], int(found["year"])))
    assert len(names) > 20, "the pattern finds few of them"
    for source, said in names.items():
        assert len(said) == 1, f"{source} is cited as {sorted(said)}"
        found = ARXIV.fullmatch(source)
        assert found, f"{source} is no arXiv id"
        ((who, year),) = said
        assert arxiv_year(found) <= year <= arxiv_year(found) + 1, f"{who} {year} is not of the year of {source}"


def test_citation_file_is_of_this_version() -> None:
    """The keys that the Citation File Format 1.2.0 requires, and that they say what the project says."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] == "software"
    assert {"message", "title", "authors"} <= set(cff)
    assert cff["title"].startswith(f"{PROJECT['name']}: ")
    assert cff["authors"]
    assert all(author.get("name") or author.get("family-names") for author in cff["authors"])
    assert str(cff["version"]) == PROJECT["version"]
    assert cff["license"] == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    heading = next(line for line in changes if line.startswith("## "))
    assert heading == f"## {PROJECT['version']}, {cff.get('date-released', 'unreleased')}"
