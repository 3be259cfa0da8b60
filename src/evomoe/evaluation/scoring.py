"""``evomoe score``: answers that another program wrote, scored without torch."""

import json
from datetime import date
from pathlib import Path

from evomoe.evaluation.benchmark import ProtocolName
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.predictions import read as read_predictions
from evomoe.evaluation.questions import load_questions
from evomoe.evaluation.reports import report
from evomoe.support.files import naming, write_text


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
    EvaluationOptions(protocol=protocol).check([name], argument="benchmark")
    if output:  # before anything is scored
        with naming(output, "Name another file."):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
    benchmark = BENCHMARKS[name]
    folder = benchmark.data(annotations)
    questions = load_questions(benchmark, folder, any_version)
    answers = read_predictions(benchmark, questions, Path(predictions), allow_missing)
    result = benchmark.result(questions, answers, protocol)
    if output:
        written = {**result.as_dict(), "predictions": str(predictions), "data": folder.read, "date": date.today().isoformat()}
        try:
            write_text(output, json.dumps(written, indent=1) + "\n")
        except OSError as error:  # no reason to lose the score
            return f"{report([result])}\n\n{error}"
    return report([result])
