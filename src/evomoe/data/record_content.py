"""What records hold, in a few hashes: by these a run that goes on knows its data. Of a picture its size, beginning and end count."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from evomoe.data.kept import Found, Keeper
from evomoe.support.content import text_hash

_DIGEST, _ENDS = 16, 2**14


def row_digest(row: Any) -> bytes:
    """16 bytes by which a row is known, whatever the order of its fields."""
    try:
        text = json.dumps(row, sort_keys=True, default=_of_no_json)
    except RecursionError:
        text = "lies in itself too deeply"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()


def content_of(
    digests: bytes, pictures: Mapping[str, tuple[int, int] | None], keeper: Keeper | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """What the rows of a source hold, as JSON has it.

    Args:
        digests: of each row, in their order.
        pictures: sizes and dates of the picture files that the rows name, by absolute path; None for one that is not usable.
        keeper: keeps what pictures hold; None for rows in memory, or few.
        before: the content at another time; pictures with the same dates are not read again.
    """
    single = [digests[start : start + _DIGEST] for start in range(0, len(digests), _DIGEST)]
    files = sorted(pictures, key=lambda path: path.split(os.sep))
    seen = text_hash(f"{path} {pictures[path]}" for path in files)

    def look(_: Found | None) -> dict[str, Any]:
        return {"files": len(files), "content": text_hash(map(_ends, files))}

    if seen == before.get("seen"):
        shown = before["pictures"]
    elif keeper is None:
        shown = look(None)
    else:
        shown = keeper.outcome(
            "pictures", {"seen": seen}, make=look, write=lambda shown: Found({}, shown), read=lambda found: dict(found.facts)
        )
    return {
        "records": len(single),
        "in order": hashlib.blake2b(digests).hexdigest()[:32],
        "in any order": f"{sum(map(int.from_bytes, single)) % 2**128:032x}",
        "seen": seen,
        "pictures": shown,
    }


def _of_no_json(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.size} {hashlib.blake2b(value.tobytes()).hexdigest()}"
    return hashlib.blake2b(value).hexdigest() if isinstance(value, bytes) else str(value)


def _ends(path: str) -> str:
    if not os.path.isfile(path):
        return "none"
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_ENDS)
        file.seek(max(_ENDS, size - _ENDS))
        return f"{size} {hashlib.blake2b(first + file.read(_ENDS)).hexdigest()}"
