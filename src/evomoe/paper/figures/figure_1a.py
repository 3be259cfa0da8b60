"""The score of a model with its own routers beside those with its routers shuffled.

Implements: Figure 1 (a).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.analyze import check_takes_pictures, load_sparse
from evomoe.analysis.interventions import shuffle_test
from evomoe.analysis.plots import ShuffleScores, load_pyplot, plot_shuffles
from evomoe.evaluation.average import mean_score
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.generation import evaluate
from evomoe.evaluation.prepared import prepare
from evomoe.model.loading import load_processor
from evomoe.paper.figures.drawing import write_figure
from evomoe.paper.figures.figure_options import FigureOptions
from evomoe.paper.tables.table_10 import TABLE
from evomoe.support.errors import OptionError
from evomoe.support.names import refuse_missing
from evomoe.support.parse_json import read_json

_MOE_TUNING, *_SHUFFLED = [score for row in TABLE.rows if row.published and (score := row.published[-1]) is not None]
PUBLISHED = ShuffleScores(_MOE_TUNING, _SHUFFLED)
"""Table 10: the average of the seven benchmarks, MoE-tuning and eight shuffles of its routers."""


def draw(checkpoints: Mapping[str, str], options: FigureOptions) -> str:
    """Scores checkpoints, by name, with their own and with eight shuffled routers, and draws the figure.

    Returns:
        What was written.

    Raises:
        ValueError: a checkpoint is dense or text-only, a file of scores cannot be read, or a benchmark's data are missing.
        ImportError: matplotlib is not installed.
    """
    load_pyplot()  # before anything is scored
    label, known = read_scores(options.scores) if options.scores else ("", {})
    new = {name: checkpoint for name, checkpoint in checkpoints.items() if checkpoint not in known}
    if new and label and label != _label(options.benchmarks):
        raise OptionError(
            "scores", f"{options.scores} holds {label}, and {next(iter(new))} would be scored as {_label(options.benchmarks)}."
        )
    for checkpoint in new.values():
        refuse_missing(checkpoint)
        check_takes_pictures(checkpoint, options)
    known |= {checkpoint: score_shuffles(checkpoint, name, options) for name, checkpoint in new.items()}
    label = _label(options.benchmarks) if new else label or "score"
    drawn = {name: known[checkpoint] for name, checkpoint in checkpoints.items()}
    about = {
        "score": label,
        "limit": options.limit,
        "published": vars(PUBLISHED),
        "scores": {checkpoints[name]: vars(scores) | {"name": name} for name, scores in drawn.items()},
    }
    written = write_figure(options.output, "1a", lambda *paths: plot_shuffles(drawn, *paths, score=label), about)
    changes = "; ".join(f"{name} {scores.mean_change():+.2f}" for name, scores in drawn.items())
    return f"Mean change under shuffles: {changes} (paper, MoE-tuning: {PUBLISHED.mean_change():+.2f})\n{written}"


def _label(benchmarks: Sequence[str]) -> str:
    """What the scores are, for the axis."""
    if len(benchmarks) > 3:
        return f"mean of {len(benchmarks)} benchmarks"
    return f"{'mean of ' if len(benchmarks) > 1 else ''}{', '.join(benchmarks)}"


def score_shuffles(checkpoint: str, name: str, options: FigureOptions) -> ShuffleScores:
    """The mean score over the benchmarks with the checkpoint's own routers, and with each of eight shuffles."""
    processor = load_processor(checkpoint, options.trust_remote_code)
    evaluation = options.evaluation().of(checkpoint)
    prepared = [prepare(BENCHMARKS[benchmark], processor, evaluation) for benchmark in options.benchmarks]

    def score(model: PreTrainedModel) -> float:
        results = [
            evaluate(model, one.benchmark, one.questions, one.prompts, f"{name}: {one.benchmark.name}") for one in prepared
        ]
        return mean_score({one.benchmark.name: result.score for one, result in zip(prepared, results, strict=True)})

    return ShuffleScores(*shuffle_test(load_sparse(checkpoint, options), score))


def read_scores(path: str | Path) -> tuple[str, dict[str, ShuffleScores]]:
    """What is scored, and the scores by checkpoint, from a file that this figure wrote or one with the latter alone.

    Raises:
        OptionError: it is neither.
    """
    try:
        written: Any = read_json(path)
        label, entries = (written["score"], written["scores"]) if "scores" in written else ("", written)
        scores = {name: ShuffleScores(float(one["own"]), [*map(float, one["shuffled"])]) for name, one in entries.items()}
        if not all(one.shuffled for one in scores.values()):
            raise ValueError("no shuffles")
        return label, scores
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise OptionError("scores", f'{path} does not hold {{checkpoint: {{"own": 65.5, "shuffled": [65.3, ...]}}}}.') from error
