"""easy-VQA's test split: 9,673 questions about 1,000 pictures; the answer must match in full."""

from collections.abc import Sequence
from typing import Literal

from evomoe.data import easy_vqa
from evomoe.evaluation.base import Benchmark, Item


def items(split: Literal["train", "test"] = "test") -> Sequence[Item]:
    """The questions of a split; a question's type is color, shape, yes/no or yes/no negated."""
    return [
        Item(question.image_path, question.question, question.answer, question.type) for question in easy_vqa.questions(split)
    ]


def score(answer: str, item: Item) -> float:
    """1 if the answer is the right word, whatever its case, else 0."""
    return float(answer.strip().lower() == item.answer)


BENCHMARK = Benchmark(items, score, max_new_tokens=8)
