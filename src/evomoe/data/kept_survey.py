"""The survey of records, taken from what was kept if nothing that it depends on has changed."""

import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import transformers

from evomoe.data.chat_template import ChatTemplate
from evomoe.data.images import Shape
from evomoe.data.kept import Found, Keeper
from evomoe.data.records import Record
from evomoe.data.survey import Surveyed, survey
from evomoe.data.videos import VideoReader
from evomoe.support.content import file_hash, text_hash
from evomoe.support.processor import Processor, rows_of, tokenizer_of

_LIBRARIES = (transformers, tokenizers, jinja2)
_OF_TODAY = "strftime_now"
"""What templates call that write the date."""


def kept_survey(
    records: Sequence[Record],
    processor: Processor,
    template: ChatTemplate,
    shape: Shape,
    max_length: int,
    reader: VideoReader,
    workers: int,
) -> list[Surveyed]:
    """What ``survey`` finds.

    It is kept for records of a file or a dataset, under: their content, which of them are good, the sizes of their pictures; all that
    the processor saves, and the folder of a class that is not transformers'; the template's arguments, and the day if the template asks
    for it; the shape, the most tokens, the frames of a video, the rows of the model's embedding if the tokenizer has more tokens, and
    the libraries' versions.
    """

    def find(_: Found | None = None) -> list[Surveyed]:
        return survey(records, processor, template, shape, max_length, reader, workers)

    keeper: Keeper | None = getattr(records, "keeper", None)
    if keeper is None or (of_processor := _hash(processor)) is None:
        return find()
    options = {
        "name": getattr(records, "name", ""),
        "records": getattr(records, "shown", ""),
        "processor": of_processor,
        "template": template.options,
        "day": str(date.today()) if _OF_TODAY in of_processor["template"] else "",
        "aspect": shape.aspect,
        "max_length": max_length,
        "frames": reader.frames,
        "rows": rows_of(processor),
        "libraries": [library.__version__ for library in _LIBRARIES],
    }
    return keeper.outcome("labels", options, make=find, write=_written, read=_read)


def _written(found: list[Surveyed]) -> Found:
    faults = {str(number): one.fault for number, one in enumerate(found) if one.fault is not None}
    return Found({"lengths_N": np.array([one.length for one in found], np.int64)}, {"faults": faults})


def _read(found: Found) -> list[Surveyed]:
    faults = found.facts["faults"]
    known = [*map(Surveyed, found.arrays["lengths_N"].tolist())]
    for number, fault in faults.items():
        known[int(number)] = known[int(number)]._replace(fault=fault)
    return known


def _hash(processor: Processor) -> dict[str, Any] | None:
    """A processor by all that it saves and by the files of its classes; None if it saves nothing, or a class is in no file."""
    own = (getattr(processor, f"{kind}_processor", None) for kind in ("image", "video"))
    parts = {type(part) for part in (processor, tokenizer_of(processor), *own) if part}
    classes: dict[str, str] = {}
    for part in parts:
        name = f"{part.__module__}.{part.__qualname__}"
        if part.__module__.partition(".")[0] == transformers.__name__:
            classes[name] = transformers.__version__
            continue
        file = getattr(sys.modules.get(part.__module__), "__file__", None)
        if file is None:
            return None
        classes[name] = text_hash(map(file_hash, sorted(Path(file).parent.glob("*.py"))))  # it may import from there
    with tempfile.TemporaryDirectory() as folder:
        try:
            processor.save_pretrained(folder)
        except Exception:  # a class may do whatever it likes
            return None
        saved = {str(path.relative_to(folder)): file_hash(path) for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    templates = [str(getattr(part, "chat_template", "")) for part in (processor, tokenizer_of(processor))]
    return {"classes": classes, "saved": saved, "template": " ".join(templates)}
