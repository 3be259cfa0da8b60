"""Renders a conversation with the processor's own chat template and finds every answer in the text."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateError, meta

from evomoe.data.marks import Marks, Piece, Span, common_start, tokens_pattern
from evomoe.data.messages import Message, marked_message, marks_of, message_of, messages_of, texts_of
from evomoe.data.turns import IMAGE_MARK, VIDEO_MARK, BadRecordError, Record, Turn
from evomoe.support.bounded import memory_limit, time_limit
from evomoe.support.errors import OptionError, foreign
from evomoe.support.processor import Processor, tokenizer_of
from evomoe.support.text import counted, shortened

PROBE = (Turn("user", "ping"), Turn("assistant", "pong"))
"""A question and its answer, to see what a template writes around them."""
_SECONDS, _MEMORY, _LONGEST = 10.0, 2 * 10**9, 10**8
"""What a record's renderings may take: time, bytes, and the characters that each may have."""
OF_TOKENIZERS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
"""The attributes of a tokenizer that name tokens which mean something to a model."""
_REFUSES = "the chat template refuses"
_HALF = re.compile("[\ud800-\udfff]")


class LabelMismatchError(BadRecordError):
    """The labels of a record cannot be placed with certainty; the message names the record and the first difference."""


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as one text, pictures as single placeholders.

    Attributes:
        text: What the processor tokenises.
        answers: The (start, end) characters of every assistant turn that is learned, from where the template hands over to the
            assistant, with the end-of-turn text.
        words: The words of each of them as the text has them, without thinking.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    words: tuple[str, ...]


class ChatTemplate:
    """The chat template of a processor (or of a tokenizer, for text alone).

    Args:
        processor: A transformers processor or tokenizer.
        options: Arguments of the template, such as enable_thinking.

    Attributes:
        end: What is put after the last answer, for the template has no special token there; empty if it has.
        end_id: The token that ends an answer; None if there is none.

    Raises:
        OptionError: The template reads no such argument.
        ValueError: It has no chat template, or one that can render no conversation.
    """

    def __init__(self, processor: Processor, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer_of(processor)
        self._takes_images = processor is not self.tokenizer
        self._takes_videos, self._taker = getattr(processor, "video_processor", None) is not None, type(processor).__name__
        owner = processor if getattr(processor, "chat_template", None) else self.tokenizer
        if not getattr(owner, "chat_template", None):
            raise ValueError(
                f"{type(processor).__name__} has no chat template; set processor.chat_template, "
                "or put chat_template.jinja into the model's folder"
            )
        self.owner = type(owner).__name__
        self.options = dict(options or {})
        self._apply = owner.apply_chat_template
        self.image_token: str = str(getattr(processor, "image_token", IMAGE_MARK))
        self.video_token: str = str(getattr(processor, "video_token", VIDEO_MARK))
        added = {
            str(token): getattr(token, "special", True) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        }
        added |= dict.fromkeys(getattr(self.tokenizer, "all_special_tokens", ()), True)
        self._special = tokens_pattern(list(added))
        self._placeholders = {str(getattr(processor, name, "") or "") for name in ("image_token", "video_token", "audio_token")}
        control = [token for token, special in added.items() if special] + sorted(self._placeholders)
        # One character is a character, whatever a tokenizer pads with.
        own = self._placeholders | {str(getattr(self.tokenizer, name, None)) for name in OF_TOKENIZERS}
        self._never_words = {token for token in control if token in own or token in str(owner.chat_template)}
        self._control = re.compile("|".join(re.escape(token) for token in control if len(token) > 1) or "(?!)")
        self._structured = self._accepts(messages_of(PROBE))
        if not self._structured and not self._accepts(self._plain_messages(PROBE)):
            reason = f": {foreign(self._fault)}" if self._fault else ""
            raise ValueError(f"the chat template of {type(owner).__name__} cannot render a question and its answer{reason}")
        _check_options(owner.chat_template, self.options)
        self.end, self.end_id = self._end_of_answers()

    def text(self, record: Record) -> str:
        """Renders a record, pictures as single placeholders.

        Raises:
            BadRecordError: The template refuses the conversation.
            LabelMismatchError: The template loses or rewrites a turn, or loses a picture.
        """
        with self._bounded(record):
            return self._located(record)[0]

    def question(self, record: Record) -> str:
        """Renders a record that ends with a question, up to where the assistant is to answer.

        Raises:
            BadRecordError, LabelMismatchError: As `text` does.
        """
        with self._bounded(record):
            return self._located(record, add_generation_prompt=True)[0]

    def placeholders(self, record: Record) -> list[str]:
        """What stands in a record's rendering for a picture or a video, of those kinds that it has."""
        return [self.image_token] * bool(record.images) + [self.video_token] * bool(record.videos)

    def special_tokens(self, text: str) -> dict[str, bool]:
        """What to tell the processor of special tokens: a template that writes the first one itself must not get a second."""
        first = self.tokenizer.bos_token
        return {"add_special_tokens": False} if first and text.startswith(first) else {}

    def render(self, record: Record) -> RenderedConversation:
        """Renders a record and finds its answers in the text.

        An answer begins where a question's rendering would end. Its end is the text that the template puts after an answer which is
        the last one, as far as an earlier one has it too: what the model shall write itself.

        Raises:
            BadRecordError: As `text` does.
            LabelMismatchError: As `text` does.
        """
        with self._bounded(record):
            return self._with_answers(record)

    def _with_answers(self, record: Record) -> RenderedConversation:
        text, spans, thoughts, marks = self._located(record)
        places = {piece.turn: number for number, piece in enumerate(marks.pieces)}
        answers = [number for number, turn in enumerate(record.turns) if turn.role == "assistant"]
        last = answers[-1]
        is_end = last + 1 == len(record.turns)
        at = places[last]
        tail = text[_of(spans[at]).end :] if is_end else self._tail(record, last)
        asked = self._rendered(record, self._messages(record, last), add_generation_prompt=True) if last else ""
        begins, lead = self._last_begin(text, asked, spans, at, thoughts)
        header = self._header(record, last, asked) if len(answers) > 1 else ""
        found = {last: (begins, len(text) if is_end else self._answer_end(text, spans, at, tail))}
        for number in answers[:-1]:
            at = places[number]
            before, shown = _end_before(spans, at), _start(spans, thoughts, at)
            gap = text[before:shown]
            if header:
                place = gap.find(header)
                begins = shown if place < 0 else before + place + len(header)
            else:
                begins = shown - len(lead) if gap.endswith(lead) else shown
            found[number] = begins, self._answer_end(text, spans, at, tail)
        if is_end and self.end:
            text = text.rstrip() + self.end
            found[last] = found[last][0], len(text)
        learned = [number for number in answers if record.turns[number].learned]
        words = tuple(marks.pieces[places[number]].words for number in learned)
        return RenderedConversation(text, tuple(found[number] for number in learned), words)

    def notes(self) -> list[str]:
        """What is worth knowing of this template: an end that it lacks, a question that whole conversations do not have."""
        found = []
        if self.end:
            found.append(
                f"The chat template puts no special token after an answer; {self.end!r} is put after the last one of each record, "
                "so that the model learns where to stop."
            )
        elif self.end_id is None:
            found.append(
                "The chat template puts no special token after an answer, and the tokenizer has none that ends a text: the model will not "
                "learn where to stop. Set tokenizer.eos_token."
            )
        probe = Record("a question and its answer", (), PROBE)
        whole, asked = self.text(probe), self.question(Record(probe.where, (), PROBE[:1]))
        if not whole.startswith(asked):
            differs = asked[common_start(asked, whole, self._special) :]
            found.append(
                f"The chat template asks for an answer with {differs!r}, which the conversations that are trained on do not have there."
            )
        return found

    def _last_begin(
        self, text: str, asked: str, spans: list[Span | None], at: int, thoughts: list[int | None]
    ) -> tuple[int, str]:
        """Where the last answer begins, and what the template puts between that and the answer."""
        shown = _start(spans, thoughts, at)
        begins = len(asked) if text.startswith(asked) and _end_before(spans, at) <= len(asked) <= shown else shown
        return begins, text[begins:shown]

    def _header(self, record: Record, last: int, asked: str) -> str:
        """What the template writes where the assistant is to answer."""
        return asked[common_start(asked, self._rendered(record, self._messages(record, last)), self._special) :]

    def _tail(self, record: Record, last: int) -> str:
        """What the template writes after an answer with which a conversation ends."""
        part = Record(record.where, (), record.turns[: last + 1], record.videos)
        text, spans, _, _ = self._located(part, check_images=False)
        return text[_of(spans[-1]).end :]

    def _answer_end(self, text: str, spans: list[Span | None], at: int, tail: str) -> int:
        end = _of(spans[at]).end
        after = text[end : next((span.start for span in spans[at + 1 :] if span), len(text))]
        shown, expected = after.lstrip(), tail.lstrip()
        alike = common_start(shown, expected, self._special)
        return end + len(after) - len(shown) + alike if alike else end

    def _end_of_answers(self) -> tuple[str, int | None]:
        text, spans, _, _ = self._located(Record("a question and its answer", (), PROBE))
        tail = text[_of(spans[-1]).end :]
        special = next((found[0] for found in self._special.finditer(tail) if len(found[0]) > 1), "")
        token = special or self.tokenizer.eos_token or ""
        return "" if special else token, self.tokenizer.convert_tokens_to_ids(token) if token else None

    def _accepts(self, messages: list[Message]) -> bool:
        self._fault: Exception | None = None
        try:
            with time_limit(_SECONDS), memory_limit(_MEMORY):
                text = self._applied(messages)
        except (TimeoutError, MemoryError) as error:
            raise ValueError(f"{_REFUSES} a question and its answer: {foreign(error)}") from error
        except Exception as error:  # a template may do whatever it likes
            self._fault = error
            return False
        # A template for plain strings may print a list of parts instead of failing on it.
        return all(turn.text in text for turn in PROBE) and "'type'" not in text and '"type"' not in text

    def _messages(self, record: Record, end: int | None = None) -> list[Message]:
        """The messages of a record's turns, or of those before one."""
        turns, videos = record.turns[:end], bool(record.videos)
        return messages_of(turns, videos) if self._structured else self._plain_messages(turns, videos)

    def _plain_messages(self, turns: tuple[Turn, ...], videos: bool = False) -> list[Message]:
        return [message_of(turn, self._plain_text(turn, videos)) for turn in turns]

    def _plain_text(self, turn: Turn, videos: bool) -> str:
        if turn.role == "assistant":
            return turn.text
        text = turn.text.replace(IMAGE_MARK, self.image_token)
        return text.replace(VIDEO_MARK, self.video_token) if videos else text

    @contextmanager
    def _bounded(self, record: Record) -> Iterator[None]:
        try:
            with time_limit(_SECONDS), memory_limit(_MEMORY):
                yield
        except (TimeoutError, MemoryError) as error:
            raise BadRecordError(f"{record.where}: {_REFUSES} the conversation: {foreign(error)}") from error

    def _applied(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        text = self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self.options)
        if len(text) > _LONGEST:
            raise ValueError(f"it writes {len(text):,} characters; the limit is {_LONGEST:,}")
        return text

    def _rendered(self, record: Record, messages: list[Message], add_generation_prompt: bool = False) -> str:
        try:
            return self._applied(messages, add_generation_prompt)
        except Exception as error:
            raise BadRecordError(f"{record.where}: {_REFUSES} the conversation: {foreign(error)}") from error

    def _located(
        self, record: Record, add_generation_prompt: bool = False, check_images: bool = True
    ) -> tuple[str, list[Span | None], list[int | None], Marks]:
        """A record's rendering, and where the words of its turns stand in it."""
        if record.images and not self._takes_images:
            raise BadRecordError(f"{record.where}: it has images, but {type(self.tokenizer).__name__} takes only text")
        if record.videos and not self._takes_videos:
            raise BadRecordError(f"{record.where}: it has a video, and {self._taker} takes none")
        for number, turn in enumerate(record.turns):
            self._check_words(f"{record.where}: turn {number} ({turn.role})", turn, bool(record.videos))
        messages = self._messages(record)
        text = self._rendered(record, messages, add_generation_prompt)
        pieces = [
            Piece.of(number, words, record.turns[number].role == "assistant")
            for number, message in enumerate(messages)
            for words in texts_of(message)
        ]
        marks = Marks(pieces)
        numbers = iter(range(len(pieces)))
        marked = self._rendered(record, [marked_message(message, marks, numbers) for message in messages], add_generation_prompt)
        plain = marks.taken_out(marked)
        spans, thoughts = marks.found(marked, plain)
        for piece, span in zip(pieces, spans, strict=True):
            if piece.words and span is None:
                raise LabelMismatchError(
                    f"{record.where}: the chat template loses, repeats or rewrites the text of turn {piece.turn} "
                    f"({record.turns[piece.turn].role}): {piece.words[:80]!r}"
                )
        if plain != text:
            raise LabelMismatchError(
                f"{record.where}: the chat template renders other text once its turns are marked, so no answer can be told apart"
            )
        if (thinking := _last_thinking(record.turns, pieces)) and thinking not in text:
            raise BadRecordError(
                f"{record.where}: the chat template loses the reasoning of the last answer: {shortened(thinking)!r}"
            )
        for found, token, name in ((record.images, self.image_token, "image"), (record.videos, self.video_token, "video")):
            if check_images and found and (shown := text.count(token)) != len(found):
                raise LabelMismatchError(
                    f"{record.where}: the text after the chat template has {shown} {token} for {counted(len(found), name)}"
                )
        return text, spans, thoughts, marks

    def _check_words(self, where: str, turn: Turn, videos: bool) -> None:
        words = turn.text if turn.role == "assistant" else marks_of(videos).sub("", turn.text)
        for text in (words, turn.thinking):
            if "\0" in text:
                raise BadRecordError(f"{where} holds a null character; remove it")
            if half := _HALF.search(text):
                raise BadRecordError(f"{where} holds half a character, {half[0]!r}, which is not text; remove it")
            if token := self._control.search(text):
                way = "" if token[0] in self._never_words else ", or train with `allow_special_tokens`"
                raise BadRecordError(
                    f"{where} holds {token[0]!r}, which the model reads as a control token; write it otherwise{way}"
                )


def with_end(ends: int | list[int] | None, end_id: int | None) -> int | list[int] | None:
    """The tokens at which generation stops, with the one that ends an answer."""
    known = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return ends if end_id is None or end_id in known else end_id if not known else [*known, end_id]


def _check_options(template: object, options: Mapping[str, Any]) -> None:
    """Raises OptionError if a template does not read one of its arguments."""
    if not options:
        return
    read: set[str] = set()
    for source in template.values() if isinstance(template, Mapping) else [template]:
        with suppress(TemplateError):  # one that cannot be rendered is refused with its reason
            source = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", str(source))
            read |= meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source))
    ours = {"messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token"}
    for name in options:
        if name not in read or name in ours:
            known = ", ".join(sorted(read - ours)) or "none"
            raise OptionError("template_options", f"the model's chat template reads no '{name}'; those that it reads: {known}.")


def _of(span: Span | None) -> Span:
    assert span is not None  # an answer has words
    return span


def _start(spans: list[Span | None], thoughts: list[int | None], at: int) -> int:
    thought, span = thoughts[at], _of(spans[at])
    return span.start if thought is None else thought


def _end_before(spans: list[Span | None], at: int) -> int:
    return next((span.end for span in reversed(spans[:at]) if span), 0)


def _last_thinking(turns: tuple[Turn, ...], pieces: list[Piece]) -> str:
    """The reasoning of the turn that ends a conversation, which no template drops on purpose."""
    inline = pieces[-1].thinking if pieces and pieces[-1].turn + 1 == len(turns) else ""
    return turns[-1].thinking.strip() or inline
