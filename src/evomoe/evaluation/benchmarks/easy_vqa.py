"""easy-VQA's test split: 9,673 questions about 1,000 pictures; the answer must match in full.

Its pictures and questions ship in the package easy-vqa, so it needs no data folder.
"""

from collections.abc import Iterable, Mapping, Sequence

from evomoe.data import easy_vqa
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question
from evomoe.evaluation.data_folder import DataFolder
from evomoe.evaluation.pictures import FilePicture
from evomoe.evaluation.statistics import accuracy_by_type, error_of_mean


def questions(asked: Iterable[easy_vqa.Question]) -> list[Question]:
    """easy-VQA's questions as a benchmark's; their types are color, shape, yes/no and yes/no negated."""
    return [
        Question(str(number), item.question, FilePicture(item.image_path), item.answer, item.type)
        for number, item in enumerate(asked)
    ]


def load(folder: DataFolder) -> list[Question]:
    return questions(easy_vqa.questions("test"))


def prompt(question: Question, protocol: ProtocolName) -> str:
    """The bare question, as in training."""
    return question.text


def is_right(answer: str, question: Question) -> bool:
    """Whether the answer is the right word, whatever its case."""
    return answer.strip().lower() == question.answer


def score(questions: Sequence[Question], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Accuracy, the same under every protocol. An answer that is no right answer to any question is unparsable."""
    points = [float(is_right(answers[question.id], question)) for question in questions]
    words = {question.answer for question in questions}
    return Findings(
        score=100 * sum(points) / len(points),
        unit="accuracy %",
        standard_error=100 * error_of_mean(points),
        error_method="of the mean over questions",
        unparsable=sum(answers[question.id].strip().lower() not in words for question in questions),
        tables={"question type": accuracy_by_type([question.type for question in questions], points)},
    )


BENCHMARK = Benchmark(
    "easy-vqa", "easy-VQA's test split: 9,673 questions about coloured shapes, one-word answers.", load, prompt, score, max_new_tokens=8
)  # fmt: skip
