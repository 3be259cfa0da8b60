"""Greedy answers of any VLM to a benchmark's questions, and their score by question type."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.chat_template import messages_of
from evomoe.data.records import IMAGE_MARK, Turn
from evomoe.tables import markdown_table


@dataclass(frozen=True)
class Item:
    """One question: the path of its picture, its text, the right answer, and the group it is reported in."""

    image_path: str
    question: str
    answer: str
    type: str


@dataclass(frozen=True)
class Benchmark:
    """Where the questions come from and how one answer is scored, 0 to 1."""

    items: Callable[[], Sequence[Item]]
    score: Callable[[str, Item], float]
    max_new_tokens: int


@dataclass(frozen=True)
class Score:
    """Accuracy in percent: of all questions and by type, with the number of questions."""

    total: float
    by_type: dict[str, float]
    counts: dict[str, int]

    @classmethod
    def of(cls, items: Sequence[Item], points: Sequence[float]) -> "Score":
        groups: dict[str, list[float]] = defaultdict(list)
        for item, point in zip(items, points, strict=True):
            groups[item.type].append(point)
        by_type = {name: 100 * sum(group) / len(group) for name, group in sorted(groups.items())}
        return cls(100 * sum(points) / len(points), by_type, {name: len(groups[name]) for name in by_type})


class Prompts:
    """A benchmark's questions as model inputs, prepared once and used for any number of models with the same processor.

    Batches hold questions of similar length, padded on the left.
    """

    def __init__(self, items: Sequence[Item], processor, batch_size: int = 128) -> None:
        self.items, self.processor = list(items), processor
        texts = [self._render(item.question) for item in self.items]
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), self.items[i].image_path))
        chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.batches = [(chunk, self._inputs([texts[i] for i in chunk], [self.items[i] for i in chunk])) for chunk in chunks]

    def _render(self, question: str) -> str:
        messages = messages_of((Turn("user", f"{IMAGE_MARK}\n{question}"),))  # as in training
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _inputs(self, texts: list[str], items: list[Item]):
        images = [[_open(item.image_path)] for item in items]
        return self.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")

    def answers(self, model: PreTrainedModel, max_new_tokens: int, label: str = "answering") -> list[str]:
        """The model's greedy answer to every question, in the order of ``items``."""
        answers = [""] * len(self.items)
        for index, new_tokens_BS in self.generate(model, max_new_tokens, label):
            texts = self.processor.batch_decode(new_tokens_BS, skip_special_tokens=True)
            for i, text in zip(index, texts, strict=True):
                answers[i] = text
        return answers

    @torch.inference_mode()
    def generate(self, model: PreTrainedModel, max_new_tokens: int, label: str) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yields, per batch, the questions' positions in ``items`` and their new tokens (B, S)."""
        was_training = model.training
        model.eval()
        for index, inputs in tqdm(self.batches, desc=label, unit="batch", dynamic_ncols=True, leave=False):
            inputs = inputs.to(model.device, model.dtype)
            tokens_BS = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
            yield index, tokens_BS[:, inputs["input_ids"].shape[1] :]
        model.train(was_training)


def evaluate(model: PreTrainedModel, prompts: Prompts, benchmark: Benchmark, label: str = "answering") -> Score:
    """Scores a model's greedy answers."""
    answers = prompts.answers(model, benchmark.max_new_tokens, label)
    return Score.of(prompts.items, [benchmark.score(answer, item) for answer, item in zip(answers, prompts.items, strict=True)])


def score_table(benchmark: str, scores: dict[str, Score]) -> str:
    """A Markdown table: a row per model, a column per question type, accuracies in percent."""
    counts = next(iter(scores.values())).counts
    types = [f"{name} ({count:,})" for name, count in counts.items()]
    header = [f"{benchmark}, accuracy %", *types, f"all ({sum(counts.values()):,})"]
    rows = [[name, *(f"{score.by_type[t]:.1f}" for t in counts), f"{score.total:.2f}"] for name, score in scores.items()]
    return markdown_table(header, rows)


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}).") from error
