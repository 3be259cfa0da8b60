"""A benchmark made ready for a model: its questions, and the prompts that the model will be asked."""

from dataclasses import dataclass

from evomoe.evaluation.benchmark import Benchmark, Question
from evomoe.evaluation.data_folder import DataFolder
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import Prompts, ask
from evomoe.evaluation.pictures import check_pictures
from evomoe.evaluation.questions import find_data, load_questions
from evomoe.evaluation.sampling import draw
from evomoe.support.processor import Processor


@dataclass(frozen=True)
class Prepared:
    """A benchmark's questions, where they come from, and what the model will be asked."""

    benchmark: Benchmark
    questions: list[Question]
    data: DataFolder
    prompts: Prompts


def prepare(benchmark: Benchmark, processor: Processor, options: EvaluationOptions, keep: bool = False) -> Prepared:
    """Reads a benchmark's questions, or the part that ``options`` ask for, and makes prompts for the model with this processor.

    Args:
        keep: hold the prompts' batches in memory, for several models in turn.

    Raises:
        ValueError: data or pictures are missing, or not as the benchmark publishes them.
    """
    folder = find_data(benchmark, options.data_root)
    questions = draw(load_questions(benchmark, folder, options.any_version), options.limit)
    check_pictures(benchmark.name, (picture for question in questions for picture in question.pictures))
    asked = [ask(question, benchmark.prompt(question, options.protocol)) for question in questions]
    prompts = Prompts(asked, processor, options.batch_size, options.image_aspect, keep, options.template_options)
    return Prepared(benchmark, questions, folder, prompts)
