"""Text files of the mini world."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, and the folder that it goes to."""
    write_lines(path, [json.dumps(content, ensure_ascii=False)])


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes lines of UTF-8 that end alike on every system, and the folder that they go to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
