"""``evomoe eval``: a checkpoint, dense or sparse, on benchmarks, as a table."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.base import Prompts, Score, score_table
from evomoe.files import refuse_existing, write_text
from evomoe.loading import load_config, load_model, load_processor, takes_pictures


def evaluate_checkpoint(
    checkpoint: str | Path, benchmarks: Sequence[str], batch_size: int = 128, limit: int = 0, output: Path | None = None
) -> str:
    """Scores a model's greedy answers.

    Args:
        checkpoint: folder or hub name.
        benchmarks: rows of ``BENCHMARKS``.
        batch_size: questions per batch.
        limit: only so many questions, evenly spaced; 0 for all.
        output: JSON file for scores and answers.

    Returns:
        A Markdown table.

    Raises:
        ValueError: there is no such benchmark, or ``output`` exists.
    """
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise ValueError(f"benchmarks: there is no '{name}'; choose from {', '.join(BENCHMARKS)}.")
    if limit < 0:
        raise ValueError(f"limit: {limit} must be 0 (all questions) or more.")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1.")
    if output:
        refuse_existing(output, "file")
    if not takes_pictures(load_config(checkpoint)):
        raise ValueError(f"{', '.join(benchmarks)} needs a model that takes pictures; {checkpoint} is text-only.")
    if not torch.cuda.is_available():
        torch.set_flush_denormal(True)
    model, processor = load_model(checkpoint), load_processor(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tables, written = [], {}
    for name in benchmarks:
        benchmark = BENCHMARKS[name]
        items = list(benchmark.items())
        if limit:
            items = items[:: max(1, len(items) // limit)][:limit]
        prompts = Prompts(items, processor, batch_size)
        answers = prompts.answers(model, benchmark.max_new_tokens, name)
        points = [benchmark.score(answer, item) for answer, item in zip(answers, items, strict=True)]
        score = Score.of(items, points)
        tables.append(score_table(name, {str(checkpoint): score}))
        written[name] = {
            "score": dataclasses.asdict(score),
            "answers": [
                {**dataclasses.asdict(item), "prediction": answer, "points": point}
                for item, answer, point in zip(items, answers, points, strict=True)
            ],
        }
    if output:
        write_text(output, json.dumps(written, indent=1) + "\n")
    return "\n\n".join(tables)
