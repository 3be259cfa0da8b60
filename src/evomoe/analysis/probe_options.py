"""What a sparse model is analyzed on, as data. Needs neither torch nor transformers."""

from dataclasses import dataclass
from typing import Literal

from evomoe.recipe.options import ImageAspect, OnBadRecord
from evomoe.support.errors import OptionError
from evomoe.support.names import check_folder, refuse_missing, split_name


@dataclass(frozen=True)
class ProbeOptions:
    """The records that a sparse model is analyzed on.

    Attributes:
        data: LLaVA JSON, JSON lines, a folder of ``datasets.save_to_disk`` or a hub dataset ("name" or "name:split").
        image_root: folder that the records' image paths are relative to.
        records: how many records, evenly spaced over the data; they stay in memory.
        batch_size: records per forward pass.
        max_length: tokens per record; longer ones are cut.
        on_bad_record: stop, or skip: leave bad records out, as a run does that was told to.
        image_aspect: pad: pad pictures to a square first, as LLaVA-1.5 does; keep: do not; auto: where the processor would crop them.
        dtype: precision of the weights.
        trust_remote_code: run code from the model's repository.
    """

    data: str = ""
    image_root: str | None = None
    records: int = 64
    batch_size: int = 8
    max_length: int = 2048
    on_bad_record: OnBadRecord = "stop"
    image_aspect: ImageAspect = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False

    def check(self) -> None:
        """Raises OptionError if an option is wrong, ValueError if its file is not there."""
        if not self.data:
            raise OptionError("data", "name the records to look at, such as those that the model was trained on.")
        refuse_missing(split_name(self.data)[0])
        if self.image_root is not None:
            check_folder("image_root", self.image_root)
        for name in ("records", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise OptionError(name, f"{getattr(self, name)} must be at least 1.")
