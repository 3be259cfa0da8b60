"""Greedy answers of any VLM to a benchmark's questions: in batches of similar length, padded on the left."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.chat_template import ChatTemplate, with_end
from evomoe.data.images import BadImageError, Shape
from evomoe.data.records import IMAGE_MARK, Record, Turn
from evomoe.data.thinking import not_thinking, without_thinking
from evomoe.evaluation.benchmark import Benchmark, Question, Result
from evomoe.evaluation.encode_once import EncodeOnce
from evomoe.evaluation.pictures import Picture
from evomoe.recipe.options import ImageAspect
from evomoe.support.device import placed
from evomoe.support.errors import panics_as_errors
from evomoe.support.processor import Processor, beyond_rows, cannot_process
from evomoe.support.workers import begin_worker, ends_told

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1}

_SIMILAR = 64  # characters: prompts that differ by less share a batch, so that questions about one picture can stay together


@dataclass(frozen=True)
class Asked:
    """What a model is to answer: the turns of a conversation, with marks where the pictures stand, and its name in messages."""

    where: str
    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...] = ()


def ask(question: Question, prompt: str | None = None) -> Asked:
    """A question as training has it: the picture first, then the text, or the words of a protocol in its place.

    Raises:
        ValueError: the text holds the mark of a picture, which processors put a picture in for wherever it stands.
    """
    text, where = question.text if prompt is None else prompt, f"question {question.id!r}"
    if question.turns:
        return Asked(where, question.turns, question.pictures)
    if IMAGE_MARK in text:
        raise ValueError(
            f"{where}: its text holds {IMAGE_MARK}, which stands for a picture: {text!r:.200}; put other words in its place in the "
            "benchmark's file."
        )
    mark = f"{IMAGE_MARK}\n" if question.pictures else ""
    return Asked(where, (Turn("user", f"{mark}{text}"),), question.pictures)


@dataclass(frozen=True)
class Batch:
    """Conversations, by their positions, with the keys of their pictures, as inputs of a model."""

    index: list[int]
    pictures: list[str]
    inputs: Any


class Prompts(Dataset[Batch]):
    """Conversations that wait for an answer, as batches of inputs for any model with this processor.

    A batch holds prompts of similar length; those about the same picture follow one another. Prompts with and without
    pictures do not share a batch.

    Args:
        asked: the conversations.
        processor: the model's own, whose chat template is used.
        batch_size: conversations per batch.
        image_aspect: what becomes of the pictures' shape, see ``evomoe.data.images.Shape``.
        keep: hold the prepared batches in memory, for several models in turn.
        template_options: arguments of the chat template; see ``not_thinking``.

    Raises:
        OptionError: the template reads no such argument.
        ValueError: the processor has no chat template, or the template loses a question or begins each answer with thinking.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        processor: Processor,
        batch_size: int = 128,
        image_aspect: ImageAspect = "auto",
        keep: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.asked, self.processor = list(asked), processor
        self.template = ChatTemplate(processor, not_thinking(processor, template_options or {}))
        tokenizer = self.template.tokenizer
        if tokenizer.pad_token is None:  # the attention mask hides the padding, so any token will do
            tokenizer.pad_token = tokenizer.eos_token
        self.texts = [
            self.template.question(Record(one.where, tuple(picture.key for picture in one.pictures), one.turns))
            for one in self.asked
        ]
        self.shape = Shape(processor, image_aspect)
        self._latest: tuple[str, Image.Image] | None = None
        self.keep, self.batch_size = keep, batch_size
        self.narrow(range(len(self.asked)))

    def narrow(self, positions: Sequence[int], process: int = 0, processes: int = 1) -> None:
        """Keeps the conversations at these positions alone, and of their batches those of one of several processes.

        Args:
            positions: what is still to be asked.
            process: number of this process, from 0.
            processes: how many there are.
        """
        chunks: list[list[int]] = []
        for with_picture in (True, False):
            part = sorted((i for i in positions if bool(self.asked[i].pictures) is with_picture), key=self._order)
            chunks += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        self.chunks = chunks[process::processes]
        self._kept: dict[int, Batch] = {}

    def _order(self, position: int) -> tuple[int, list[str], int]:
        length = len(self.texts[position])
        return length // _SIMILAR, [picture.key for picture in self.asked[position].pictures], length

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch:
        """Decodes and prepares one batch; workers of a DataLoader call this ahead of the model."""
        if self.keep and index in self._kept:
            return _copy(self._kept[index])
        positions = self.chunks[index]
        texts = [self.texts[i] for i in positions]
        pictures = [picture.key for i in positions for picture in self.asked[i].pictures]
        options: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        options |= self.template.special_tokens(texts[0])
        if pictures:
            options["images"] = [[self._open(self.asked[i], picture) for picture in self.asked[i].pictures] for i in positions]
        batch = Batch(positions, pictures, self._processed(positions, texts, options))
        if self.keep:
            self._kept[index] = _copy(batch)
        return batch

    def _processed(self, positions: Sequence[int], texts: list[str], options: dict[str, Any]) -> Any:
        """The model's inputs; raises ValueError, with the conversation's name, for whatever the processor raises."""
        try:
            with panics_as_errors():
                made = self.processor(text=texts, **options)
                if beyond := beyond_rows(self.template.tokenizer, made["input_ids"].flatten().tolist()):
                    raise ValueError(beyond)
                return made
        except Exception as error:
            if len(texts) == 1:
                raise ValueError(cannot_process(self.asked[positions[0]].where, self.processor, error)) from error
            for number, position in enumerate(positions):
                images = {"images": options["images"][number : number + 1]} if "images" in options else {}
                self._processed([position], texts[number : number + 1], options | images)
            where = ", ".join(self.asked[position].where for position in positions)
            raise ValueError(cannot_process(where, self.processor, error)) from error

    def _open(self, asked: Asked, picture: Picture) -> Image.Image:
        if self._latest is None or self._latest[0] != picture.key:
            try:
                self._latest = picture.key, self.shape.fit(picture.open())
            except BadImageError as error:
                raise ValueError(f"{asked.where}: {error}") from error
        return self._latest[1]


class Answerer:
    """Answers batches of questions.

    Args:
        model: on its device; it is put into evaluation mode for as long as it answers.
        max_new_tokens: the longest answer.
        encode_once: let questions about one picture share its features, see ``EncodeOnce``.
        **generation: further settings of ``generate``, in place of those for greedy answers.

    Attributes:
        encoded: how many pictures the model has encoded.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int, encode_once: bool = True, **generation: Any) -> None:
        self.model = model
        self.generation = GREEDY | generation | {"max_new_tokens": max_new_tokens}
        self._encode_once = EncodeOnce(model) if encode_once else None

    @property
    def encoded(self) -> int:
        assert self._encode_once is not None
        return self._encode_once.encoded

    def answer(
        self, prompts: Prompts, label: str | None = "answering", workers: int = 0, done: int = 0
    ) -> Iterator[dict[int, str]]:
        """Yields the greedy answers of batch after batch, by the positions of their questions, without the spaces around.

        Args:
            prompts: the questions.
            label: of the progress bar; None for no bar.
            workers: processes that decode pictures and prepare batches ahead.
            done: how many of the questions were answered before.

        Raises:
            OptionError: one of the processes ended before its time.
            ValueError: the accelerator's memory is too small for the batch.
        """
        loader = DataLoader(
            _Careful(prompts),
            batch_size=None,
            num_workers=min(workers, len(prompts)),
            collate_fn=_as_it_is,
            worker_init_fn=begin_worker,
        )
        total = done + sum(map(len, prompts.chunks))
        was_training, settings = self.model.training, self.model.generation_config
        self.model.eval()
        # Whatever else a checkpoint's own settings say of generation, every model is asked in the same way.
        ends = {name: getattr(settings, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ends["eos_token_id"] = with_end(ends["eos_token_id"], prompts.template.end_id)
        self.model.generation_config = GenerationConfig(**ends)
        once = self._encode_once
        try:
            with (
                once.active() if once else contextlib.nullcontext(),
                ends_told(workers),
                tqdm(
                    total=total, initial=done, desc=label, unit="question", dynamic_ncols=True, leave=False, disable=label is None
                ) as bar,
            ):
                for batch in loader:
                    if isinstance(batch, Exception):
                        raise batch
                    if once:
                        once.keys = batch.pictures
                    yield dict(zip(batch.index, self._generate(prompts, batch), strict=True))
                    bar.update(len(batch.index))
        finally:
            self.model.train(was_training)
            self.model.generation_config = settings

    @torch.inference_mode()
    def _generate(self, prompts: Prompts, batch: Batch) -> list[str]:
        inputs = placed(batch.inputs, self.model)
        generate: Any = self.model.generate  # a method of the families' classes, not of the one they share
        try:
            tokens_BS = generate(**inputs, **self.generation)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"out of memory with {len(batch.index)} questions at once; the answers so far are kept: "
                "go on with a smaller `batch_size`."
            ) from error
        texts = prompts.processor.batch_decode(tokens_BS[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [without_thinking(text).strip() for text in texts]


def evaluate(
    model: PreTrainedModel, benchmark: Benchmark, questions: Sequence[Question], prompts: Prompts, label: str = "answering"
) -> Result:
    """Scores a model's greedy answers to a benchmark's questions, of which ``prompts`` were made, by the official rule."""
    answers = answers_by_id(model, questions, prompts, benchmark.max_new_tokens, label)
    return benchmark.result(questions, answers, "official")


def answers_by_id(
    model: PreTrainedModel, questions: Sequence[Question], prompts: Prompts, max_new_tokens: int, label: str = "answering"
) -> dict[str, str]:
    """A model's greedy answers to questions, of which ``prompts`` were made, by the questions' ids."""
    answers: dict[int, str] = {}
    for some in Answerer(model, max_new_tokens).answer(prompts, label):
        answers |= some
    return {question.id: answers[position] for position, question in enumerate(questions)}


class _Careful(Dataset[Batch | Exception]):
    """Hands errors on as values: those that are raised in a worker arrive as its whole traceback."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Batch | Exception:
        try:
            return self.prompts[index]
        except (ValueError, OSError) as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _copy(batch: Batch) -> Batch:
    """With the same tensors: moving inputs to a device changes the mapping that holds them."""
    return replace(batch, inputs=type(batch.inputs)(dict(batch.inputs)))
