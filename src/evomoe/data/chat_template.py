"""Renders a conversation with the processor's own chat template and finds every answer in the text."""

from dataclasses import dataclass
from typing import Any

import jinja2

from evomoe.data.records import IMAGE_MARK, BadRecordError, Record, Turn
from evomoe.support.processor import Processor, tokenizer_of

Message = dict[str, Any]

_PROBE = (Turn("user", "ping"), Turn("assistant", "pong"))


class LabelMismatchError(BadRecordError):
    """The labels of a record cannot be placed with certainty; the message names the record and the first difference."""


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as one text, pictures as single placeholders.

    Attributes:
        text: What the processor tokenises.
        answers: The (start, end) characters of every assistant turn, with the end-of-turn text of the template.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def messages_of(turns: tuple[Turn, ...]) -> list[Message]:
    """Turns as Hugging Face messages: lists of image and text parts, in the order of the marks.

    Line breaks next to a mark are dropped: they only set the mark apart, and templates bring their own.
    """
    return [{"role": turn.role, "content": _parts(turn.text)} for turn in turns]


class ChatTemplate:
    """The chat template of a processor (or of a tokenizer, for text alone).

    Args:
        processor: A transformers processor or tokenizer.

    Raises:
        ValueError: It has no chat template, or one that can render no conversation.
    """

    def __init__(self, processor: Processor) -> None:
        self.tokenizer = tokenizer_of(processor)
        self._takes_images = processor is not self.tokenizer
        owner = processor if getattr(processor, "chat_template", None) else self.tokenizer
        if not getattr(owner, "chat_template", None):
            raise ValueError(
                f"{type(processor).__name__} has no chat template; set processor.chat_template, "
                "or put chat_template.jinja into the model's folder"
            )
        self.owner = type(owner).__name__
        self._apply = owner.apply_chat_template
        self.image_token: str = str(getattr(processor, "image_token", IMAGE_MARK))
        self._structured = self._accepts(messages_of(_PROBE))
        if not self._structured and not self._accepts(self._plain_messages(_PROBE)):
            raise ValueError(f"the chat template of {type(owner).__name__} cannot render a question and its answer")

    def text(self, record: Record) -> str:
        """Renders a record, pictures as single placeholders.

        Raises:
            BadRecordError: The template refuses the conversation.
            LabelMismatchError: The template loses or rewrites a turn, or loses a picture.
        """
        messages = self._messages(record)
        text = self._rendered(record, messages)
        self._check_complete(record, messages, text)
        return text

    def question(self, record: Record) -> str:
        """Renders a record that ends with a question, up to where the assistant is to answer.

        Raises:
            BadRecordError, LabelMismatchError: As `text` does.
        """
        messages = self._messages(record)
        text = self._rendered(record, messages, add_generation_prompt=True)
        self._check_complete(record, messages, text)
        return text

    def special_tokens(self, text: str) -> dict[str, bool]:
        """What to tell the processor of special tokens: a template that writes the first one itself must not get a second."""
        first = self.tokenizer.bos_token
        return {"add_special_tokens": False} if first and text.startswith(first) else {}

    def render(self, record: Record) -> RenderedConversation:
        """Renders a record and finds its answers from the renderings of its beginnings.

        Raises:
            BadRecordError: As `text` does.
            LabelMismatchError: As `text` does, or the template renders an earlier turn differently once later ones
                follow.
        """
        messages = self._messages(record)
        text = self.text(record)
        answers = []
        for number, turn in enumerate(record.turns):
            if turn.role == "assistant":
                asked = self._prefix(record, text, messages[:number], add_generation_prompt=True)
                is_last = number + 1 == len(messages)  # then the whole is no other rendering
                answered = (
                    len(text) if is_last else self._prefix(record, text, messages[: number + 1], add_generation_prompt=False)
                )
                answers.append((asked, answered))
        return RenderedConversation(text, tuple(answers))

    def _accepts(self, messages: list[Message]) -> bool:
        try:
            text = self._apply(messages, tokenize=False)
        except (TypeError, ValueError, jinja2.TemplateError):
            return False
        # A template for plain strings may print a list of parts instead of failing on it.
        return all(turn.text in text for turn in _PROBE) and "'type'" not in text and '"type"' not in text

    def _messages(self, record: Record) -> list[Message]:
        return messages_of(record.turns) if self._structured else self._plain_messages(record.turns)

    def _plain_messages(self, turns: tuple[Turn, ...]) -> list[Message]:
        return [{"role": turn.role, "content": turn.text.replace(IMAGE_MARK, self.image_token)} for turn in turns]

    def _rendered(self, record: Record, messages: list[Message], add_generation_prompt: bool = False) -> str:
        try:
            return self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        except (TypeError, ValueError, jinja2.TemplateError) as error:
            raise BadRecordError(f"{record.where}: the chat template refuses the conversation: {error}") from error

    def _prefix(self, record: Record, text: str, messages: list[Message], add_generation_prompt: bool) -> int:
        if not messages:
            return 0
        prefix = self._rendered(record, messages, add_generation_prompt)
        if not text.startswith(prefix):
            same = next(i for i, (a, b) in enumerate(zip(prefix + "\0", text + "\1", strict=False)) if a != b)
            raise LabelMismatchError(
                f"{record.where}: the chat template renders the first {len(messages)} turns as "
                f"{prefix[same : same + 40]!r} from character {same} on, but as {text[same : same + 40]!r} within the "
                "whole conversation, so the answer cannot be told apart; use a template that leaves earlier turns as "
                "they are"
            )
        return len(prefix)

    def _check_complete(self, record: Record, messages: list[Message], text: str) -> None:
        if record.images and not self._takes_images:
            raise BadRecordError(f"{record.where}: it has images, but {type(self.tokenizer).__name__} takes only text")
        position = 0
        for number, message in enumerate(messages):
            for words in _texts(message):
                start = text.find(words.strip(), position)
                if start < 0:
                    raise LabelMismatchError(
                        f"{record.where}: the chat template loses or rewrites the text of turn {number} "
                        f"({message['role']}): {words.strip()[:80]!r}"
                    )
                position = start + len(words.strip())
        if record.images and (shown := text.count(self.image_token)) != len(record.images):
            raise LabelMismatchError(
                f"{record.where}: the text after the chat template has {shown} {self.image_token} for {len(record.images)} images"
            )


def _parts(text: str) -> list[Message]:
    parts: list[Message] = []
    for number, words in enumerate(text.split(IMAGE_MARK)):
        if number > 0:
            parts.append({"type": "image"})
            words = words.removeprefix("\n")
        if number < text.count(IMAGE_MARK):
            words = words.removesuffix("\n")
        if words.strip():
            parts.append({"type": "text", "text": words})
    return parts


def _texts(message: Message) -> list[str]:
    if isinstance(message["content"], str):
        return [message["content"]]
    return [part["text"] for part in message["content"] if part["type"] == "text"]
