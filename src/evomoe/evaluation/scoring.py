"""``evomoe score``: answers that another program wrote, scored without torch."""

import dataclasses
import json
from datetime import date
from pathlib import Path

from evomoe.evaluation.base import Benchmark, ProtocolName, Question, check_unique
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.options import Options
from evomoe.evaluation.predictions import read as read_predictions
from evomoe.evaluation.reports import report
from evomoe.evaluation.sources import DataFolder
from evomoe.files import naming, write_text


def score_predictions(
    name: str,
    predictions: str | Path,
    annotations: str | Path,
    protocol: ProtocolName = "official",
    output: str | Path | None = None,
    allow_missing: bool = False,
    any_version: bool = False,
) -> str:
    """Scores answers that another program wrote.

    Args:
        name: a row of ``BENCHMARKS``.
        predictions: file, or MME's folder, in one of the formats that ``predictions`` reads.
        annotations: the benchmark's folder, or its annotation file.
        protocol: whose rule.
        output: JSON file for the result; its folder is made.
        allow_missing: count questions without an answer as wrong.
        any_version: also score data that no known version of the benchmark has.

    Returns:
        Tables in Markdown.

    Raises:
        ValueError: an option is wrong, or answers and questions do not fit together.
        OSError: the folder of ``output`` cannot be made.
    """
    Options(protocol=protocol).check([name], argument="benchmark")
    if output:  # before anything is scored
        with naming(output, "Name another file."):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
    benchmark, folder = BENCHMARKS[name], DataFolder(name, annotations)
    questions = load_questions(benchmark, folder, any_version)
    answers = read_predictions(name, questions, Path(predictions), allow_missing)
    result = dataclasses.replace(benchmark.score(questions, answers, protocol), benchmark=name)
    if output:
        written = {**result.as_dict(), "predictions": str(predictions), "data": folder.read, "date": date.today().isoformat()}
        try:
            write_text(output, json.dumps(written, indent=1) + "\n")
        except OSError as error:  # no reason to lose the score
            return f"{report([result])}\n\n{error}"
    return report([result])


def load_questions(benchmark: Benchmark, folder: DataFolder, any_version: bool = False) -> list[Question]:
    """A benchmark's questions; their ids are unique, their types and number those of a known version, or any.

    Raises:
        ValueError: they are not.
    """
    try:
        questions = list(benchmark.load(folder))
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        files = folder.files or str(folder.path)
        raise ValueError(
            f"{benchmark.name}: {files}: not as the benchmark publishes it ({type(error).__name__}: {error}). Get the published file."
        ) from error
    folder.check_file()
    if not questions:
        raise ValueError(f"{benchmark.name}: there are no questions in {folder.files or folder.path}.")
    check_unique(benchmark.name, [question.id for question in questions], folder.files)
    if not any_version:
        missing = [name for name in benchmark.types if name not in {question.type for question in questions}]
        if missing:
            raise ValueError(
                f"{benchmark.name}: no questions of {', '.join(missing)} in {folder.path or 'the data'}. Get the whole data, or score "
                "what is there with --any-version."
            )
        folder.check_version(len(questions), benchmark.counts)
    return questions
