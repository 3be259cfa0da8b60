"""What a processor and a tokenizer of transformers are to this library."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, cast

from evomoe.support.errors import foreign

_ROWS = "evomoe_rows_of_its_model"
"""An attribute of tokenizers, which they do not save."""


class Processor(Protocol):
    """Makes a model's inputs of texts and pictures, and text of token ids: a processor, or for a text-only model its tokenizer.

    A processor of pictures also has ``tokenizer``, ``image_processor`` and ``image_token``, which a tokenizer has not.
    """

    chat_template: Any  # none, one, or several by name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called with ``text`` and, for a model that takes pictures, ``images``: the inputs by name, with more that processors add."""

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """A conversation as one text."""

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The texts of rows of token ids."""

    def save_pretrained(self, save_directory: str | PathLike[str], /) -> Any:
        """Writes it into a folder."""


class Tokenizer(Processor, Protocol):
    """A tokenizer; labels need a fast one."""

    is_fast: bool
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_ids: Sequence[int]
    added_tokens_decoder: Mapping[int, Any]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The text of token ids."""

    def convert_tokens_to_ids(self, tokens: str, /) -> int:
        """The id of a token."""

    def convert_ids_to_tokens(self, ids: int, /) -> str:
        """The token of an id."""


def tokenizer_of(processor: Processor) -> Tokenizer:
    """A processor's tokenizer; a tokenizer is its own."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    return tokenizer


def know_rows(processor: Processor, rows: int) -> None:
    """Tells a processor how many rows its model's embedding has, if its tokenizer has tokens beyond them."""
    vars(tokenizer_of(processor))[_ROWS] = rows


def rows_of(processor: Processor) -> int | None:
    """How many rows the model's embedding has; None if it has one for each token, as far as is known."""
    return vars(tokenizer_of(processor)).get(_ROWS)


def beyond_rows(tokenizer: Processor, ids: Iterable[int]) -> str:
    """Which token of a text has no row in the model's embedding, in words; empty if each has one, or if nothing is known of rows."""
    rows = rows_of(tokenizer)
    if rows is None or (last := max(ids, default=0)) < rows:
        return ""
    token = cast(Tokenizer, tokenizer).convert_ids_to_tokens(last)
    return (
        f"it has the token {token!r}, number {last}, and the model's embedding has rows up to {rows - 1} (vocab_size {rows}); write it "
        "otherwise, or take the model's own tokenizer"
    )


def cannot_process(where: str, processor: Processor, error: Exception) -> str:
    """The message for whatever a processor or tokenizer raises; ``where`` names the record or question."""
    return f"{where}: {type(processor).__name__} cannot process it: {foreign(error)}"


def for_servers(processor: Any) -> Any:
    """The same processor, told what a server needs to count a picture's tokens before there is one.

    transformers' LLaVA counts them by the size that pictures are cut to, with towers too that cut nothing.
    """
    images = getattr(processor, "image_processor", None)
    if images is not None and getattr(images, "crop_size", "none is needed") is None and not images.do_center_crop:
        images.crop_size = images.size
    return processor
