"""Markdown pages of studies as blocks: their tables can be sorted, and programs that they name can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from .blocks import Block, Prose, Table
from .programs import Programs

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_ADDRESS = re.compile(r"https?://[^\s<>\"')|\]]+[^\s<>\"')|\].,;:]")
_THREAD = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull|discussions)/(\d+)")


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def blocks(text: str, programs: Programs) -> tuple[str, list[Block]]:
    """(title, blocks) of a page; HTML in it is text, and links into the project open the program or are none."""
    title, found = "", list[Block]()
    heading = ""
    for group in _groups(_parser().parse(text)):
        first = group[0]
        if first.type == "table_open":
            found.append(_table(group, heading or title, programs))
        elif first.type == "heading_open":
            heading = _plain(group[1].children or [])
            level = int(first.tag[1])
            if level == 1 and not title:
                title, heading = heading, ""
            else:
                depth = min(level + 1, 6)  # a page's `##` lies below a section's title
                inside = _inline(group[1].children or [], programs)
                found.append(Prose(Markup("<h{0}>{1}</h{0}>").format(depth, inside), depth))
        elif not _is_image(group):
            found.append(Prose(_html(group, programs)))
    return title, found


def _groups(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens of one block each, from its opening to its end."""
    group: list[Token] = []
    depth = 0
    for token in tokens:
        group.append(token)
        depth += token.nesting
        if depth == 0:
            yield group
            group = []


def _is_image(tokens: Sequence[Token]) -> bool:
    """Whether it is a picture and nothing more: this page draws what lies beside the other."""
    inline = [token for token in tokens if token.type == "inline"]
    return [child.type for token in inline for child in token.children or []] == ["image"]


def _table(tokens: Sequence[Token], title: str, programs: Programs) -> Table:
    rows: list[list[str]] = []
    right: set[int] = set()
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            if "right" in str(before.attrs.get("style", "")):
                right.add(len(rows[-1]))
            rows[-1].append(_inline(token.children or [], programs))
    head, *body = rows
    return Table(title, head, body, frozenset(right))


def _html(tokens: Sequence[Token], programs: Programs) -> Markup:
    """Anything that is no table: tags without attributes, and text."""
    parts: list[Markup] = []
    for token in tokens:
        if token.type == "inline":
            parts.append(_inline(token.children or [], programs))
        elif token.type in ("fence", "code_block"):
            parts.append(Markup("<pre><code>{}</code></pre>").format(token.content))
        elif token.type == "hr":
            parts.append(Markup("<hr>"))
        elif not token.hidden:
            parts.append(Markup(f"<{'/' if token.nesting < 0 else ''}{token.tag}>"))
    return Markup("").join(parts)


def _inline(tokens: Sequence[Token], programs: Programs) -> Markup:
    """Text within a line."""
    parts: list[Markup] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.type == "link_open":
            end = next(i for i in range(at, len(tokens)) if tokens[i].type == "link_close")
            parts.append(_link(str(token.attrs.get("href", "")), tokens[at + 1 : end], programs))
            at = end
        elif token.type == "code_inline":
            parts.append(Markup("<code>{}</code>").format(token.content))
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(Markup("\n" if token.type == "softbreak" else "<br>"))
        elif token.type == "image":
            parts.append(escape(token.content))
        elif token.nesting:
            parts.append(Markup(f"<{'/' if token.nesting < 0 else ''}{token.tag}>"))
        else:
            parts.append(_linked(token.content))
        at += 1
    return Markup("").join(parts)


def _link(target: str, inside: Sequence[Token], programs: Programs) -> Markup:
    """A link to the network, a button that opens a program, or the text alone: nothing else lies beside the page."""
    if target.startswith(("https://", "http://")):
        return Markup('<a href="{}" rel="noreferrer">{}</a>').format(target, _inline(inside, programs))
    return programs.button(target, _plain(inside)) or _inline(inside, programs)


def _linked(text: str) -> Markup:
    """Text in which addresses can be followed; a thread on GitHub is called by its project and number."""
    parts, end = [], 0
    for found in _ADDRESS.finditer(text):
        thread = _THREAD.fullmatch(found[0])
        name = f"{thread[1]}#{thread[2]}" if thread else found[0]
        parts += [
            escape(text[end : found.start()]),
            Markup('<a href="{}" rel="noreferrer">{}</a>').format(found[0], name),
        ]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def _plain(tokens: Sequence[Token]) -> str:
    return "".join(token.content for token in tokens)
