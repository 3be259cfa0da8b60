"""A conversation with a model about pictures: turn by turn, answers as they are written.

The conversation outlives whatever goes wrong in a turn: a turn that cannot be answered leaves it as it was.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TextStreamer
from transformers.modeling_utils import PreTrainedModel
from transformers.trainer_utils import set_seed

from evomoe.analysis.evaluation_mode import evaluation_mode
from evomoe.analysis.recording import Records, record_routing
from evomoe.analysis.routing_load import RoutingLoad
from evomoe.data.chat_template import ChatTemplate
from evomoe.data.images import Shape, check_image, open_rgb
from evomoe.data.records import IMAGE_MARK, Record, Turn
from evomoe.model.loading import load_config, load_model, load_processor
from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import text_config
from evomoe.recipe.run_folder import template_options_of
from evomoe.serving.sampling import Sampling
from evomoe.support.device import best_device, moved, placed, prepare
from evomoe.support.errors import OptionError, foreign
from evomoe.support.processor import Processor, beyond_rows, tokenizer_of
from evomoe.support.text import counted

OnText = Callable[[str], Any]
OnToken = Callable[[str, int], Any]


class ConversationError(ValueError):
    """What one turn asks for cannot be done; the message says why, and the conversation can go on."""


@contextmanager
def about(option: str) -> Iterator[None]:
    """Within the block, what cannot be done is the fault of ``option``."""
    try:
        yield
    except ConversationError as error:
        raise OptionError(option, str(error)) from error


@dataclass(frozen=True)
class Answered:
    """The last question, as the model was given it, and what it made of it.

    Attributes:
        inputs: the model's, for the whole conversation up to the question.
        ids_T: (T,) token ids of these and of the answer, on the CPU.
        load: where these tokens went; None of a dense model.
    """

    inputs: Mapping[str, Any]
    ids_T: Tensor
    load: RoutingLoad | None


@dataclass(frozen=True)
class Said:
    """What a conversation holds.

    Attributes:
        turns: what was said so far, pictures as marks.
        pictures: files of these pictures, in order.
        waiting: files of pictures that the next question will be about.
        last: the last question and its answer; None before the first.
    """

    turns: tuple[Turn, ...] = ()
    pictures: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    last: Answered | None = None


class Conversation:
    """Turns, pictures and the model that answers.

    Args:
        model: dense or sparse, on its device.
        processor: its own.
        max_pixels: larger pictures are refused.
        template_options: arguments of the chat template.

    Attributes:
        said: what it holds; replaced as a whole, so that it can be put back.
        shape: what becomes of a picture's shape before the processor sees it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        max_pixels: int = 89_478_485,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.processor, self._max_pixels = model, processor, max_pixels
        self._template, self.shape = ChatTemplate(processor, template_options), Shape(processor, "auto")
        self._tokenizer, self.said = tokenizer_of(processor), Said()

    @classmethod
    def load_from(cls, checkpoint: str, dtype: str = "auto", trust_remote_code: bool = False) -> "Conversation":
        """Of a folder or hub name, on the best device; one in a run's folder is asked as it was trained."""
        device = best_device()
        prepare(device)
        load_config(checkpoint, trust_remote_code)  # a wrong name shall not wait for a processor
        processor = load_processor(checkpoint, trust_remote_code)
        model = moved(load_model(checkpoint, dtype, trust_remote_code), device)
        return cls(model, processor, template_options=template_options_of(checkpoint))

    @property
    def takes_pictures(self) -> bool:
        return self.processor is not self._tokenizer

    def decode(self, ids: list[int]) -> str:
        """Token ids as text, special ones too."""
        return self._tokenizer.decode(ids)

    @property
    def is_sparse(self) -> bool:
        return is_sparse(self.model)

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most, as far as its configuration says so."""
        return getattr(text_config(self.model.config), "max_position_embeddings", None)

    def add_picture(self, file: str) -> None:
        """Puts a picture before the next question.

        Raises:
            ConversationError: there is no such picture, it cannot be read, or the model takes words alone.
        """
        if not self.takes_pictures:
            raise ConversationError(f"{type(self.model).__name__} takes words alone; it cannot look at {file}.")
        path = str(Path(file).expanduser())
        try:
            check_image(path, self._max_pixels)
        except ValueError as error:
            raise ConversationError(str(error) if path in str(error) else f"{file!r}: {foreign(error)}") from error
        self.said = replace(self.said, waiting=(*self.said.waiting, path))

    def say(
        self, words: str, sampling: Sampling, on_text: OnText = lambda text: None, on_token: OnToken = lambda text, expert: None
    ) -> str:
        """Asks, and gives the answer.

        Args:
            on_text: is told each piece of the answer as it is written.
            on_token: is told each token of the answer of a sparse model once it has been routed, and the expert, from 0, that came
                first in most layers.

        Raises:
            ConversationError: nothing was said, or there is no room for an answer. The conversation is as it was before.
        """
        if not words.strip():
            raise ConversationError("There is nothing to answer; write a question.")
        if IMAGE_MARK in words:
            raise ConversationError(f"{IMAGE_MARK} stands for a picture; leave it out of the words.")
        question = Turn("user", f"{IMAGE_MARK}\n" * len(self.said.waiting) + words)
        turns, pictures = (*self.said.turns, question), (*self.said.pictures, *self.said.waiting)
        inputs = self._inputs(turns, pictures)
        length = inputs["input_ids"].shape[1]
        room = sampling.max_new_tokens if self.context is None else min(sampling.max_new_tokens, self.context - length)
        if room < 1:
            raise ConversationError(
                f"The conversation has {counted(length, 'token')} with this question, and the model reads {self.context} at most; "
                "begin a new one."
            )
        last = self._answer(inputs, room, sampling, on_text, on_token)
        answer = self._tokenizer.decode(last.ids_T[length:], skip_special_tokens=True).strip()
        self.said = Said((*turns, Turn("assistant", answer)), pictures, last=last)
        return answer

    def under_another_picture(self, file: str) -> "Conversation":
        """A copy whose last question was about another picture in place of the last one, with the same words as answer.

        Raises:
            ConversationError: there is no answer about a picture yet, the other one cannot be read, or it has other tokens.
        """
        said = self.said
        if said.last is None or not said.pictures:
            raise ConversationError("There is no answer about a picture yet.")
        other = copy(self)
        other.said = Said()
        other.add_picture(file)
        pictures = (*said.pictures[:-1], *other.said.waiting)
        inputs = self._inputs(said.turns[:-1], pictures)
        if not torch.equal(inputs["input_ids"], said.last.inputs["input_ids"]):
            raise ConversationError(
                "The words would stand in other places: this picture has another number of tokens. Take one of the same shape."
            )
        other.said = replace(said, pictures=pictures, last=replace(said.last, inputs=inputs))
        return other

    def _inputs(self, turns: tuple[Turn, ...], pictures: tuple[str, ...]) -> dict[str, Any]:
        try:
            text = self._template.question(Record("the conversation", pictures, turns))
            options: dict[str, Any] = {"return_tensors": "pt", **self._template.special_tokens(text)}
            if pictures:
                options["images"] = [[self.shape.fit(open_rgb(picture)) for picture in pictures]]
            inputs = self.processor(text=[text], **options)
            if beyond := beyond_rows(self._tokenizer, inputs["input_ids"].flatten().tolist()):
                raise ConversationError(f"The conversation cannot be asked: {beyond}.")
            return placed(inputs, self.model)
        except ConversationError:
            raise
        except (ValueError, OSError) as error:
            raise ConversationError(str(error)) from error
        except Exception as error:  # tokenizers raise Exception itself
            name = type(self.processor).__name__
            raise ConversationError(f"{name} of this model cannot process it: {type(error).__name__}: {error}") from error

    @torch.inference_mode()
    def _answer(self, inputs: Any, room: int, sampling: Sampling, on_text: OnText, on_token: OnToken) -> Answered:
        pieces = _Pieces(self._tokenizer, on_text)

        def routed(records: Records) -> None:
            if pieces.answered:  # the first pass is the question's
                first_L = torch.stack([record.routing.index_TK[-1, 0] for record in records.values()])
                on_token(self.decode(pieces.answered[-1:]), int(first_L.mode().values))

        ends = {
            name: getattr(self.model.generation_config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        settings = GenerationConfig(**ends, **sampling.for_generate(), max_new_tokens=room)
        set_seed(sampling.seed)
        generate: Any = self.model.generate  # a method of the families' classes, not of the one they share
        load = None
        with evaluation_mode(self.model), _asked_so(self.model, settings):
            if is_sparse(self.model):
                with record_routing(self.model, max_tokens=1, on_pass=routed) as recording:
                    tokens_BS: Tensor = generate(**inputs, generation_config=settings, streamer=pieces)
                load = RoutingLoad.of(self.model, recording)
            else:
                tokens_BS = generate(**inputs, generation_config=settings, streamer=pieces)
        return Answered(inputs, tokens_BS[0].cpu(), load)


@contextmanager
def _asked_so(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Lets these settings be all in the block: what they leave open, ``generate`` would take from the model's folder."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


class _Pieces(TextStreamer):
    """Hands the answer on, in pieces that are whole words or characters."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self.answered: list[int] = []
        self._asked = False

    def put(self, value: Tensor) -> None:
        """Told of the question's ids first, then of each token."""
        self.answered += value.flatten().tolist() if self._asked else []
        self._asked = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)
