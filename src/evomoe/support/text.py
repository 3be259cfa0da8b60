"""Small texts for people: counted words, numbers, Markdown tables."""

import re
import unicodedata
from collections.abc import Sequence

_BYTES = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}
_UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf")
"""Categories of Unicode: spaces, ends of lines and paragraphs, control and format characters."""
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Fillers of Hangul and the braille cell without dots: letters and signs to Unicode, and nothing to see."""


def counted(count: int, noun: str) -> str:
    """1, "record" -> "1 record"; 1200, "record" -> "1,200 records"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kind_of(value: object) -> str:
    """A value's type with its article: "a str", "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def shortened(value: object, length: int = 80) -> str:
    """A value for a message, without the middle of what is longer, such as a picture in base64."""
    try:
        text = str(value).encode("utf-8", "backslashreplace").decode()  # half a character can be neither printed nor written
    except RecursionError:
        text = f"{kind_of(value)} of great depth"
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def shows_nothing(text: str) -> bool:
    """Whether a text has no sign that can be seen: it is empty, or spaces, control characters and zero-width ones alone."""
    return all(sign in _BLANK or unicodedata.category(sign) in _UNSEEN for sign in text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; every column but the first is right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def in_bytes(size: int) -> str:
    """1234567 -> "1.2 MB"."""
    for unit, of in _BYTES.items():
        if size >= of:
            return f"{size / of:.1f} {unit}"
    return f"{size} bytes"


def bytes_in(text: str) -> int:
    """ "24GB" or "24G" -> 24,000,000,000; 0 for what is no size."""
    units = {unit.lower(): of for unit, of in _BYTES.items()} | {
        f"{unit[0].lower()}ib": 1024**n for n, unit in enumerate(reversed(_BYTES), 1)
    }
    units |= {unit[0]: of for unit, of in units.items() if len(unit) == 2}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    return round(float(found[1]) * units[found[2]]) if found and found[2] in units else 0


def readable(count: int) -> str:
    """1234567 -> '1.23 M'."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
