"""``evomoe eval``: a checkpoint, dense or sparse, on benchmarks: its answers, its scores, the files that servers want."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from evomoe import __version__
from evomoe.data import mini
from evomoe.evaluation.answers import AnswerFile, digest, fingerprint
from evomoe.evaluation.base import Benchmark, Question, Result
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.generation import GREEDY, Answerer, Prompts, ask
from evomoe.evaluation.options import Options
from evomoe.evaluation.reports import report
from evomoe.evaluation.scoring import load_questions
from evomoe.evaluation.sources import DataFolder, check_pictures
from evomoe.files import write_text
from evomoe.loading import load_config, load_model, load_processor, takes_pictures

logger = logging.getLogger(__name__)


def evaluate_checkpoint(checkpoint: str | Path, names: Sequence[str], options: Options = Options()) -> str:  # noqa: B008
    """Answers and scores benchmarks; what was answered before by the same model in the same way is not answered again.

    Under ``accelerate launch`` the processes share the questions, and the first one scores.

    Args:
        checkpoint: folder or hub name.
        names: rows of ``BENCHMARKS``.
        options: how.

    Returns:
        Tables in Markdown; empty in all processes but the first.

    Raises:
        ValueError: an option is wrong, data are missing, the model takes no pictures or has no processor.
    """
    evaluation = _Evaluation(checkpoint, names, options)
    results = [result for name in names if (result := evaluation.run(BENCHMARKS[name])) is not None]
    if not evaluation.state.is_main_process:
        return ""
    text = "\n\n".join([report(results)] * bool(results) + evaluation.unscored)
    write_text(evaluation.folder / "report.md", f"# {checkpoint}\n\n{text}\n")
    return f"{text}\n\nAnswers and results: {evaluation.folder}"


def dump_prompts(checkpoint: str | Path, names: Sequence[str], options: Options = Options()) -> str:  # noqa: B008
    """Writes every prompt as the model would see it, and loads no weights; returns the first of each benchmark."""
    evaluation = _Evaluation(checkpoint, names, options)
    shown = []
    for name in names:
        questions, _, prompts = evaluation.prepare(BENCHMARKS[name])
        path = evaluation.folder / name / "prompts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"question_id": question.id, "prompt": text})
            for question, text in zip(questions, prompts.texts, strict=True)
        ]
        write_text(path, "\n".join(lines) + "\n")
        shown.append(f"{name}, question {questions[0].id!r} ({path}):\n{prompts.texts[0]}")
    return "\n\n".join(shown)


class _Evaluation:
    """One checkpoint, its processor, and, once it is needed, the model."""

    def __init__(self, checkpoint: str | Path, names: Sequence[str], options: Options) -> None:
        options.check(names)
        self.checkpoint, self.options, self.folder = checkpoint, options, options.folder(checkpoint)
        if not takes_pictures(load_config(checkpoint, options.trust_remote_code)):
            raise ValueError(f"{', '.join(names)} needs a model that takes pictures; {checkpoint} is text-only.")
        self.processor = load_processor(checkpoint, options.trust_remote_code)
        # One process may wait hours for another one's answers.
        self.state = PartialState(timeout=timedelta(days=7))
        self._model: Any = None
        self._files: dict[str, str] | None = None
        self.unscored: list[str] = []

    def prepare(self, benchmark: Benchmark) -> tuple[list[Question], DataFolder, Prompts]:
        """The questions of a benchmark, where they come from, and what the model will be asked."""
        folder = data_folder(benchmark, self.options.data_root)
        questions = evenly_spaced(load_questions(benchmark, folder, self.options.any_version), self.options.limit)
        check_pictures(benchmark.name, (question.picture for question in questions))
        texts = [benchmark.prompt(question, self.options.protocol) for question in questions]
        asked = [ask(question, text) for question, text in zip(questions, texts, strict=True)]
        prompts = Prompts(asked, self.processor, self.options.batch_size, self.options.image_aspect)
        return questions, folder, prompts

    def run(self, benchmark: Benchmark) -> Result | None:
        """Answers what has no answer yet, and, in the first process, scores."""
        questions, data, prompts = self.prepare(benchmark)
        settings = self._settings(benchmark, prompts, data)
        answers = AnswerFile(self.folder / benchmark.name, settings, self.state.process_index)
        finished, given = answers.finished, answers.read()
        self.state.wait_for_everyone()  # before any process writes
        if not finished:
            self._answer(benchmark, questions, prompts, answers, given)
            self.state.wait_for_everyone()
        if not self.state.is_main_process:
            return None
        by_id = answers.read() if finished else answers.finish(questions, prompts.texts, str(self.checkpoint))
        submission = answers.path.with_name(f"submission-{answers.key}")
        submitted = benchmark.submit(questions, by_id, submission) if benchmark.submit else []
        if submitted and not any(question.answer for question in questions):
            self.unscored.append(f"{benchmark.name}: the right answers are not public; upload {', '.join(map(str, submitted))}.")
            return None
        result = benchmark.score(questions, by_id, self.options.protocol)
        result = dataclasses.replace(result, benchmark=benchmark.name)
        self._write(result, settings, data, answers.path, submitted)
        return result

    def _answer(
        self, benchmark: Benchmark, questions: Sequence[Question], prompts: Prompts, answers: AnswerFile, given: dict[str, str]
    ) -> None:
        missing = [i for i, question in enumerate(questions) if question.id not in given]
        prompts.arrange(self.options.batch_size, missing)
        prompts.chunks = prompts.chunks[self.state.process_index :: self.state.num_processes]
        if given:
            logger.info("%s: %d answers are there, %d to go", benchmark.name, len(given), len(missing))
        answerer = Answerer(self.model, benchmark.max_new_tokens)
        for some in answerer.answer(prompts, benchmark.name, self.options.workers):
            answers.append([(questions[i], prompts.texts[i], text) for i, text in some.items()], str(self.checkpoint))

    @property
    def model(self) -> Any:
        if self._model is None:
            if self.state.device.type == "cpu":
                torch.set_flush_denormal(True)
            self._model = load_model(self.checkpoint, self.options.dtype, self.options.trust_remote_code).to(self.state.device)
        return self._model

    def _settings(self, benchmark: Benchmark, prompts: Prompts, data: DataFolder) -> dict[str, Any]:
        """All that the answers depend on; what is equal here gives equal answers."""
        if self._files is None:
            self._files = fingerprint(self.checkpoint)
        pictures = (" ".join(picture.fingerprint() for picture in asked.pictures) for asked in prompts.asked)
        return {
            "model": self._files,
            "dtype": self.options.dtype,
            "prompts": digest(text for pair in zip(prompts.texts, pictures, strict=True) for text in pair),
            "data": data.read,
            "image_aspect": prompts.shape.aspect,
            "generation": {**GREEDY, "max_new_tokens": benchmark.max_new_tokens},
            "versions": {"evomoe": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        }

    def _write(
        self, result: Result, settings: dict[str, Any], data: DataFolder, answers: Path, submitted: Sequence[Path]
    ) -> None:
        written = {
            **result.as_dict(),
            "checkpoint": str(self.checkpoint),
            "date": date.today().isoformat(),
            "data": data.read,
            "limit": self.options.limit,
            "answers": answers.name,
            "submission": [str(path.relative_to(answers.parent)) for path in submitted],
            "settings": settings,
        }
        write_text(
            answers.with_name(answers.name.replace("answers-", "result-")).with_suffix(".json"),
            json.dumps(written, indent=1) + "\n",
        )


def data_folder(benchmark: Benchmark, root: str | None) -> DataFolder:
    """Where a benchmark's data lie: below ``--data-root``; those of the mini world are made when they are first asked for."""
    if root is None and benchmark.mini:
        root = str(mini.ensure() / "test")
    return DataFolder(benchmark.name, None if root is None else Path(root) / (benchmark.folder or benchmark.name))


def evenly_spaced(questions: Sequence[Question], limit: int) -> list[Question]:
    """At least ``limit`` questions, evenly spaced over the units that are scored together, which stay whole; all for 0."""
    units: dict[str, list[Question]] = {}
    for question in questions:
        units.setdefault(question.unit, []).append(question)
    if not limit or limit >= len(questions):
        return list(questions)
    wanted = max(1, round(limit * len(units) / len(questions)))
    groups = list(units.values())
    return [question for i in range(wanted) for question in groups[i * len(groups) // wanted]]
