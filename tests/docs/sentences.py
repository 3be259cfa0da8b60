"""The sentences of a page and of a help text, for the rule that none is long."""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt

LONGEST = 25
"""Words."""
_NO_END = ("e.g", "i.e", "Eq", "Eqs", "Fig", "vs", "cf", "al", "etc", "resp")
"""What ends with a dot without ending a sentence."""
_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[^a-z\s]|[\w-]+[./_][\w/])")
"""Full stops before a capital, a mark, a number, or the name of a file."""


def paragraphs(markdown: str) -> Iterator[str]:
    """The prose of a page: paragraphs and items of lists, without headings, tables, blocks of code and pictures.

    A link is its text. Code within a line keeps its backticks and loses its spaces: it is one word.
    """
    outside = 0
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type in ("heading_open", "heading_close", "table_open", "table_close"):
            outside += token.nesting
        elif token.type == "inline" and not outside:
            parts = []
            for child in token.children or ():
                if child.type == "code_inline":
                    parts.append("`" + "".join(child.content.split()) + "`")
                elif child.type in ("softbreak", "hardbreak"):
                    parts.append(" ")
                elif child.type == "text":
                    parts.append(child.content)
            if text := "".join(parts).strip():
                yield text


_NAME = re.compile(r"(• |-[\w.-]+,? |\{[^}]*\}(\|\S+)? |\[.*?\.\.\.\][\]}]* |[A-Z]{3,} )*")
"""What stands before the text of an option: its names, and the kind of its values."""


def help_texts(surface: str) -> Iterator[str]:
    """The texts of the snapshot of the command line, without options' names, values and defaults."""
    for line in surface.splitlines():
        if not line.startswith(("usage:", "evomoe ")):
            yield _NAME.sub("", re.sub(r" \((default: .*|required)\)$", "", line), count=1)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph; a colon or a semicolon ends none."""
    found, begin = [], 0
    for end in _END.finditer(text):
        last_word = text[begin : end.start()].split()[-1].lstrip("(").rstrip(".!?")
        if last_word not in _NO_END:
            found.append(text[begin : end.end()].strip())
            begin = end.end()
    return [*found, text[begin:].strip()]


def words(sentence: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())
