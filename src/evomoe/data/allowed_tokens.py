"""Special tokens that may stand in texts, as in data with boxes and places: they become tokens like any other.

The tokenizer that is saved with the trained model says so too. Its answers show them, and questions may hold them.
"""

import copy
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomoe.data.chat_template import OF_TOKENIZERS, PROBE, ChatTemplate
from evomoe.data.turns import Record
from evomoe.support.errors import OptionError, foreign
from evomoe.support.processor import Processor, know_rows, rows_of, tokenizer_of
from evomoe.support.text import counted, shortened

_OPTION = "allow_special_tokens"
_OF_PROCESSORS = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token", "vision_start_token", "vision_end_token")
_SHOWN = 12


def allow_in_texts(processor: Processor, patterns: Sequence[str]) -> Processor:
    """A copy of a processor to which the special tokens that match are words.

    Args:
        processor: of the model.
        patterns: tokens; a star stands for any characters, as in ``<loc*>``.

    Raises:
        OptionError: a pattern matches no special token, or one that means something to the model: a picture, a turn, an end.
    """
    tokenizer: Any = tokenizer_of(processor)
    special, written = sorted(_special_of(tokenizer)), _written_by_template(processor, tokenizer)
    allowed: set[str] = set()
    for pattern in patterns:
        of_pattern = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)
        matching = [token for token in special if of_pattern.fullmatch(token)]
        if not matching:
            shown = ", ".join(special[:_SHOWN]) + (f" and {len(special) - _SHOWN} more" if len(special) > _SHOWN else "")
            raise OptionError(
                _OPTION,
                f"the tokenizer has no special token {shortened(pattern)!r}; it has {shown or 'none'}. Other words may stand anyway.",
            )
        for token in matching:
            if use := _use(token, processor, tokenizer, written):
                raise OptionError(_OPTION, f"{token!r} {use}; a text that holds it would say something else. Leave it out.")
        allowed |= {*matching}
    of_words = _with_words(tokenizer, allowed)
    if tokenizer is processor:
        return of_words
    made: Any = copy.copy(processor)
    made.tokenizer = of_words
    return made


def _special_of(tokenizer: Any) -> set[str]:
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _use(token: str, processor: Any, tokenizer: Any, written: str) -> str:
    """What a token means to the model; empty if nothing that is known."""
    for owner, names in ((processor, _OF_PROCESSORS), (tokenizer, (*OF_TOKENIZERS, *_OF_PROCESSORS))):
        for name in names:
            if str(getattr(owner, name, None)) == token:
                return f"is the model's {name}"
    return "is written by the chat template" if token in written else ""


def _written_by_template(processor: Any, tokenizer: Any) -> str:
    """What the chat template writes around turns, and its source."""
    template, whole, asked = ChatTemplate(processor), Record("a conversation", (), PROBE), Record("a question", (), PROBE[:1])
    templates = [getattr(owner, "chat_template", None) or "" for owner in (processor, tokenizer)]
    sources = [source for one in templates for source in (one.values() if isinstance(one, Mapping) else [one])]
    return "\n".join([template.text(whole), template.question(asked), *map(str, sources)])


def _with_words(tokenizer: Any, words: set[str]) -> Any:
    """The tokenizer as it would be if these tokens had never been special, by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            file = Path(folder) / name
            if file.is_file():
                file.write_text(
                    json.dumps(_without_special(json.loads(file.read_text(encoding="utf-8")), words)), encoding="utf-8"
                )
        try:
            made = type(tokenizer).from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers raises Exception itself
            raise OptionError(_OPTION, f"{type(tokenizer).__name__} cannot take tokens as words ({foreign(error)}).") from error
    if _special_of(made) & words or made.get_vocab() != tokenizer.get_vocab():
        raise OptionError(
            _OPTION, f"{type(tokenizer).__name__} cannot take {counted(len(words), 'token')} as words; write them otherwise."
        )
    if (rows := rows_of(tokenizer)) is not None:
        know_rows(made, rows)
    made.padding_side = tokenizer.padding_side
    return made


def _without_special(value: Any, words: set[str]) -> Any:
    """A tokenizer's JSON in which these tokens are not marked as special, and are in no list of special ones."""
    if isinstance(value, list):
        kept = [one for one in value if not (isinstance(one, str) and one in words)]
        return [_without_special(one, words) for one in kept]
    if not isinstance(value, dict):
        return value
    # What a tokenizer.json calls its model are the words and their merges: they stay.
    changed = {name: one if name == "model" else _without_special(one, words) for name, one in value.items()}
    return changed | {"special": False} if value.get("content") in words and "special" in value else changed
