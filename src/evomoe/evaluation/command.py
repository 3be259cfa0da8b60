"""``evomoe eval``: a checkpoint, dense or sparse, on benchmarks: its answers, its scores, the files that servers want."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evomoe import __version__
from evomoe.data import mini
from evomoe.data.images import Shape
from evomoe.evaluation.answers import AnswerFile, digest, fingerprint
from evomoe.evaluation.base import Benchmark, Question, Result
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.generation import GREEDY, Answerer, Prompts, ask
from evomoe.evaluation.options import Options
from evomoe.evaluation.processes import this_process
from evomoe.evaluation.reports import report
from evomoe.evaluation.sampling import draw
from evomoe.evaluation.scoring import load_questions
from evomoe.evaluation.sources import DataFolder, check_pictures
from evomoe.files import write_text
from evomoe.loading import load_config, load_model, load_processor, takes_pictures


def evaluate_checkpoint(checkpoint: str | Path, names: Sequence[str], options: Options = Options()) -> str:  # noqa: B008
    """Answers and scores benchmarks; what was answered before by the same model in the same way is not answered again.

    Under torchrun or ``accelerate launch`` the processes share the questions, and the first one scores.

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
    prepared = [
        prepare(BENCHMARKS[name], evaluation.processor, options) for name in names
    ]  # all mistakes in data come before the first answer
    results = [result for one in prepared if (result := evaluation.run(one)) is not None]
    if not evaluation.state.is_main_process:
        return ""
    results = [*results, *evaluation.earlier(names)]
    notes = [f"Only a part of each benchmark was asked: --limit {options.limit}."] * bool(options.limit) + evaluation.notes
    text = "\n\n".join([report(results)] * bool(results) + notes)
    try:
        write_text(evaluation.folder / "report.md", f"# {checkpoint}\n\n{text}\n")
    except OSError as error:  # no reason to lose the scores
        text += f"\n\n{error}"
    return f"{text}\n\nAnswers and results: {evaluation.folder}"


def dump_prompts(checkpoint: str | Path, names: Sequence[str], options: Options = Options()) -> str:  # noqa: B008
    """Writes every prompt as the model would see it, and loads no weights; returns the first of each benchmark."""
    evaluation = _Evaluation(checkpoint, names, options)
    shown = []
    for name in names:
        one = prepare(BENCHMARKS[name], evaluation.processor, options)
        questions, prompts = one.questions, one.prompts
        path = evaluation.folder / name / "prompts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"question_id": question.id, "prompt": text})
            for question, text in zip(questions, prompts.texts, strict=True)
        ]
        write_text(path, "\n".join(lines) + "\n")
        shown.append(f"{name}, question {questions[0].id!r} ({path}):\n{prompts.texts[0]}")
    return "\n\n".join(shown)


@dataclass(frozen=True)
class Prepared:
    """A benchmark's questions, where they come from, and what the model will be asked."""

    benchmark: Benchmark
    questions: list[Question]
    data: DataFolder
    prompts: Prompts


def prepare(benchmark: Benchmark, processor: Any, options: Options, keep: bool = False) -> Prepared:
    """Reads a benchmark's questions, or the part that ``options`` ask for, and makes prompts for the model with this processor.

    Args:
        keep: hold the prompts' batches in memory, for several models in turn.

    Raises:
        ValueError: data or pictures are missing, or not as the benchmark publishes them.
    """
    folder = data_folder(benchmark, options.data_root)
    questions = draw(load_questions(benchmark, folder, options.any_version), options.limit)
    check_pictures(benchmark.name, (question.picture for question in questions))
    asked = [ask(question, benchmark.prompt(question, options.protocol)) for question in questions]
    prompts = Prompts(asked, processor, options.batch_size, options.image_aspect, keep)
    return Prepared(benchmark, questions, folder, prompts)


class _Evaluation:
    """One checkpoint, its processor, and, once it is needed, the model."""

    def __init__(self, checkpoint: str | Path, names: Sequence[str], options: Options) -> None:
        options.check(names)
        self.checkpoint, self.options, self.folder = checkpoint, options, options.folder(checkpoint)
        if not takes_pictures(load_config(checkpoint, options.trust_remote_code)):
            raise ValueError(f"{', '.join(names)} needs a model that takes pictures; {checkpoint} is text-only.")
        self.processor = load_processor(checkpoint, options.trust_remote_code)
        self.state = this_process()
        self.root = None if options.data_root is None else str(Path(options.data_root).resolve())
        self._model: Any = None
        self._files: dict[str, str] | None = None
        self.notes: list[str] = []

    def run(self, one: Prepared) -> Result | None:
        """Answers what has no answer yet, and, in the first process, scores."""
        benchmark, questions, prompts = one.benchmark, one.questions, one.prompts
        settings = self._settings(one)
        answers = AnswerFile(self.folder / benchmark.name, settings, self.state.process_index)
        finished, given = answers.finished, answers.read()
        self.state.wait_for_everyone()  # before any process writes
        if not finished:
            self._answer(benchmark, questions, prompts, answers, given)
            self.state.wait_for_everyone()
        if not self.state.is_main_process:
            return None
        if finished:
            answers.check(questions, given)
            self.notes.append(f"{benchmark.name}: answered before, nothing was asked anew ({answers.path}).")
        by_id = given if finished else answers.finish(questions, prompts.texts, str(self.checkpoint))
        submitted = self._submit(one, by_id, answers)
        if benchmark.submit and not any(question.answer for question in questions):
            upload = f" Upload {', '.join(map(str, submitted))}." if submitted else ""
            self.notes.append(f"{benchmark.name}: the right answers are not public, so there is no score.{upload}")
            return None
        result = benchmark.score(questions, by_id, self.options.protocol)
        result = dataclasses.replace(result, benchmark=benchmark.name)
        try:
            self._write(result, settings, one, answers, submitted)
        except OSError as error:
            self.notes.append(f"{benchmark.name}: {error}")
        return result

    def _submit(self, one: Prepared, by_id: dict[str, str], answers: AnswerFile) -> list[Path]:
        if one.benchmark.submit is None or self.options.limit:  # servers and tools want all answers
            return []
        folder = answers.path.with_name(f"submission-{answers.key}")
        try:
            return one.benchmark.submit(one.questions, by_id, folder)
        except (ValueError, OSError) as error:  # a missing package, a full disk: no reason to lose the score
            self.notes.append(f"{one.benchmark.name}: the files for the server were not all written to {folder}: {error}")
            return []

    def earlier(self, names: Sequence[str]) -> list[Result]:
        """The results of the other benchmarks in this folder, of the same model asked in the same way.

        Those whose data came from elsewhere, as from another split, whose rule has changed since, or whose file is damaged are
        left out, and noted.
        """
        found: dict[str, Result] = {}
        left_out: dict[str, str] = {}
        for name in BENCHMARKS:
            files = [] if name in names else (self.folder / name).glob(f"result-{self.options.protocol}-*.json")
            for path in sorted(files, key=lambda file: file.stat().st_mtime_ns):
                try:
                    written = json.loads(path.read_text(encoding="utf-8"))
                    if {key: written["settings"][key] for key in self._alike()} != self._alike():
                        continue
                    if written["limit"] != self.options.limit:
                        continue
                    if reason := self._departs(name, written):
                        left_out[name] = f"{path} is left out: {reason}"
                        continue
                    found[name] = Result(**{field.name: written[field.name] for field in dataclasses.fields(Result)})
                except (OSError, ValueError, LookupError, TypeError) as error:
                    self.notes.append(
                        f"{name}: {path} is left out: it is damaged or of another version ({type(error).__name__}: {error}). "
                        f"Remove it; to have {name} in this report, name it among the benchmarks."
                    )
        self.notes += [f"{name}: {text}" for name, text in left_out.items() if name not in found]
        return list(found.values())

    def _departs(self, name: str, written: dict[str, Any]) -> str:
        """Why an earlier result cannot stand beside those of this run; empty if it can."""
        if written["data_root"] != self.root:
            places = [f"--data-root {root}" if root else "no --data-root" for root in (written["data_root"], self.root)]
            return f"it was asked with {places[0]}, this run with {places[1]}."
        version = BENCHMARKS[name].version  # alone, for a small benchmark's rule has the large one's name
        if written["scorer"].rpartition(" ")[2] != str(version):
            return f"the rule was {written['scorer']}, and is now version {version}: name {name} among the benchmarks."
        return ""

    def _answer(
        self, benchmark: Benchmark, questions: Sequence[Question], prompts: Prompts, answers: AnswerFile, given: dict[str, str]
    ) -> None:
        missing = [i for i, question in enumerate(questions) if question.id not in given]
        prompts.arrange(self.options.batch_size, missing)
        prompts.chunks = prompts.chunks[self.state.process_index :: self.state.num_processes]
        answerer = Answerer(self.model, benchmark.max_new_tokens)
        for some in answerer.answer(prompts, benchmark.name, self.options.workers, done=len(given)):
            answers.append([(questions[i], prompts.texts[i], text) for i, text in some.items()], str(self.checkpoint))

    @property
    def model(self) -> Any:
        if self._model is None:
            if self.state.device.type == "cpu":
                torch.set_flush_denormal(True)
            self._model = load_model(self.checkpoint, self.options.dtype, self.options.trust_remote_code).to(self.state.device)
        return self._model

    def _alike(self) -> dict[str, Any]:
        """What is the same for all benchmarks of a run."""
        if self._files is None:
            self._files = fingerprint(self.checkpoint)
        versions = {"evomoe": __version__, **{name: version(name) for name in ("torch", "transformers")}}
        aspect = Shape(self.processor, self.options.image_aspect).aspect
        return {"model": self._files, "dtype": self.options.dtype, "image_aspect": aspect, "versions": versions}

    def _settings(self, one: Prepared) -> dict[str, Any]:
        """All that the answers depend on; what is equal here gives equal answers."""
        known: dict[str, str] = {}
        for asked in one.prompts.asked:
            known |= {picture.key: picture.fingerprint() for picture in asked.pictures if picture.key not in known}
        pictures = (" ".join(known[picture.key] for picture in asked.pictures) for asked in one.prompts.asked)
        identities = (question.id for question in one.questions)
        return self._alike() | {
            "prompts": digest(text for asked in zip(identities, one.prompts.texts, pictures, strict=True) for text in asked),
            "generation": {**GREEDY, "max_new_tokens": one.benchmark.max_new_tokens},
        }

    def _write(
        self, result: Result, settings: dict[str, Any], one: Prepared, answers: AnswerFile, submitted: Sequence[Path]
    ) -> None:
        folder = answers.path.parent
        written = {
            **result.as_dict(),
            "checkpoint": str(self.checkpoint),
            "date": date.today().isoformat(),
            "data_root": self.root,
            "data": one.data.read,
            "limit": self.options.limit,
            "first_prompt": one.prompts.texts[0],
            "answers": answers.path.name,
            "submission": [str(path.relative_to(folder)) for path in submitted],
            "settings": settings,
        }
        write_text(folder / f"result-{result.protocol}-{answers.key}.json", json.dumps(written, indent=1) + "\n")


def data_folder(benchmark: Benchmark, root: str | None) -> DataFolder:
    """Where a benchmark's data lie: below ``--data-root``; those of the mini world are made when they are first asked for."""
    if root is None and benchmark.mini:
        root = str(mini.ensure(training=False) / "test")
    if root is not None and benchmark.mini and (Path(root) / "test").is_dir():
        raise ValueError(f"data_root: {root} is a whole world; name one of its splits, {Path(root) / 'test'} or .../validation.")
    if root is None:
        return DataFolder(benchmark.name, None)
    places = [Path(root) / name for name in benchmark.folders or (benchmark.name,)]
    return DataFolder(benchmark.name, next((place for place in places if place.is_dir()), places[0]))
