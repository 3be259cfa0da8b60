"""``evomoe eval``: a checkpoint, dense or sparse, on benchmarks: its answers, its scores, the files that servers want.

Wrong options are refused before torch and transformers are imported, which takes seconds.
"""

from collections.abc import Sequence
from pathlib import Path

from evomoe.evaluation.evaluation_options import EvaluationOptions


def evaluate_checkpoint(
    checkpoint: str | Path,
    names: Sequence[str],
    options: EvaluationOptions = EvaluationOptions(),  # noqa: B008
) -> str:
    """Answers and scores benchmarks; what was answered before by the same model in the same way is not answered again.

    Under torchrun or ``accelerate launch`` the processes share the questions, and the first one scores.

    Args:
        checkpoint: folder or hub name.
        names: rows of ``BENCHMARKS``.
        options: how.

    Returns:
        Tables in Markdown; empty in all processes but the first.

    Raises:
        OptionError: an option is wrong, or there is no such benchmark.
        ValueError: data are missing, the model takes no pictures or has no processor.
    """
    options.check(names)
    from evomoe.evaluation.checkpoint_evaluation import CheckpointEvaluation

    return CheckpointEvaluation(checkpoint, names, options).scores()


def dump_prompts(
    checkpoint: str | Path,
    names: Sequence[str],
    options: EvaluationOptions = EvaluationOptions(),  # noqa: B008
) -> str:
    """Writes every prompt as the model would see it, and loads no weights; returns the first of each benchmark.

    Raises:
        OptionError: an option is wrong, or there is no such benchmark.
        ValueError: data are missing, the model takes no pictures or has no processor.
    """
    options.check(names)
    from evomoe.evaluation.checkpoint_evaluation import CheckpointEvaluation

    return CheckpointEvaluation(checkpoint, names, options).dump_prompts()
