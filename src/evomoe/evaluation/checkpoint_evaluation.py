"""One checkpoint on benchmarks: what it answers is kept, scored and reported."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from evomoe.data.images import Shape
from evomoe.evaluation.answers import AnswerFile
from evomoe.evaluation.benchmark import Result
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import GREEDY, Answerer
from evomoe.evaluation.prepared import Prepared, prepare
from evomoe.evaluation.processes import device_of, this_process
from evomoe.evaluation.reports import report
from evomoe.model.loading import load_config, load_model, load_processor, takes_pictures
from evomoe.support.content import fingerprint, text_hash
from evomoe.support.device import moved
from evomoe.support.device import prepare as prepare_device
from evomoe.support.files import write_text
from evomoe.support.names import check_output_folder
from evomoe.support.parse_json import read_json
from evomoe.support.text import counted
from evomoe.support.version import __version__


class CheckpointEvaluation:
    """One checkpoint, its processor, and, once it is needed, the model.

    Args:
        checkpoint: folder or hub name.
        names: rows of ``BENCHMARKS``.
        options: how, checked.

    Raises:
        ValueError: the model takes no pictures or has no processor.
    """

    def __init__(self, checkpoint: str | Path, names: Sequence[str], options: EvaluationOptions) -> None:
        self.checkpoint, self.names, self.options = checkpoint, names, options.of(checkpoint)
        self.folder = options.folder(checkpoint)
        check_output_folder(self.folder)
        shown = [name for name in names if BENCHMARKS[name].pictures]
        if not takes_pictures(load_config(checkpoint, options.trust_remote_code)) and shown:
            raise ValueError(f"{', '.join(shown)} needs a model that takes pictures; {checkpoint} is text-only.")
        self.processor = load_processor(checkpoint, options.trust_remote_code)
        self.state = this_process()
        self.root = None if options.data_root is None else str(Path(options.data_root).resolve())
        self._model: PreTrainedModel | None = None
        self._files: dict[str, str] | None = None
        self.notes: list[str] = []

    def scores(self) -> str:
        """Answers and scores the benchmarks; see ``evaluate_checkpoint``."""
        prepared = [self._prepare(name) for name in self.names]  # all mistakes in data come before the first answer
        results = [result for one in prepared if (result := self._run(one)) is not None]
        if not self.state.is_main_process:
            return ""
        results += self._earlier()
        parts = [report(results)] if results else []
        if self.options.limit:
            parts.append(f"Only a part of each benchmark was asked: {counted(self.options.limit, 'question')} at most.")
        text = "\n\n".join([*parts, *self.notes])
        try:
            write_text(self.folder / "report.md", f"# {self.checkpoint}\n\n{text}\n")
        except OSError as error:  # no reason to lose the scores
            text += f"\n\n{error}"
        return f"{text}\n\nAnswers and results: {self.folder}"

    def dump_prompts(self) -> str:
        """Writes every prompt as the model would see it; returns the first of each benchmark."""
        shown = []
        for name in self.names:
            one = self._prepare(name)
            path = self.folder / name / "prompts.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"question_id": question.id, "prompt": text})
                for question, text in zip(one.questions, one.prompts.texts, strict=True)
            ]
            write_text(path, "\n".join(lines) + "\n")
            shown.append(f"{name}, question {one.questions[0].id!r} ({path}):\n{one.prompts.texts[0]}")
        return "\n\n".join(shown)

    def _prepare(self, name: str) -> Prepared:
        return prepare(BENCHMARKS[name], self.processor, self.options)

    def _run(self, one: Prepared) -> Result | None:
        """Answers what has no answer yet, and, in the first process, scores."""
        benchmark, questions, prompts = one.benchmark, one.questions, one.prompts
        settings = self._settings(one)
        answers = AnswerFile(self.folder / benchmark.name, settings, self.state.process_index)
        finished, given = answers.finished, answers.read()
        self.state.wait_for_everyone()  # before any process writes
        if not finished:
            self._answer(one, answers, given)
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
        result = benchmark.result(questions, by_id, self.options.protocol)
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

    def _earlier(self) -> list[Result]:
        """The results of the other benchmarks in this folder, of the same model asked in the same way.

        Those whose data came from elsewhere, as from another split, whose rule has changed since, or whose file is damaged are
        left out, and noted.
        """
        found: dict[str, Result] = {}
        left_out: dict[str, str] = {}
        for name in BENCHMARKS:
            files = [] if name in self.names else (self.folder / name).glob(f"result-{self.options.protocol}-*.json")
            for path in sorted(files, key=lambda file: file.stat().st_mtime_ns):
                try:
                    written = read_json(path)
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
            theirs, ours = _data_root(written["data_root"]), _data_root(self.root)
            return f"it was asked {theirs}, this run {ours}."
        benchmark = BENCHMARKS[name]
        if written["scorer"] != benchmark.scorer:
            return f"the rule was {written['scorer']}, and is now version {benchmark.version}: name {name} among the benchmarks."
        return ""

    def _answer(self, one: Prepared, answers: AnswerFile, given: dict[str, str]) -> None:
        """Answers this process's share of the questions that have no answer yet."""
        missing = [i for i, question in enumerate(one.questions) if question.id not in given]
        one.prompts.narrow(missing, self.state.process_index, self.state.num_processes)
        answerer = Answerer(self.model, one.benchmark.max_new_tokens)
        for some in answerer.answer(one.prompts, one.benchmark.name, self.options.workers, done=len(given)):
            answered = [(one.questions[i], one.prompts.texts[i], text) for i, text in some.items()]
            answers.append(answered, str(self.checkpoint))

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            device = device_of(self.state)
            prepare_device(device)
            self._model = moved(load_model(self.checkpoint, self.options.dtype, self.options.trust_remote_code), device)
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
            "prompts": text_hash(text for asked in zip(identities, one.prompts.texts, pictures, strict=True) for text in asked),
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
            "template_options": one.prompts.template.options,
            "answers": answers.path.name,
            "submission": [str(path.relative_to(folder)) for path in submitted],
            "settings": settings,
        }
        write_text(folder / f"result-{result.protocol}-{answers.key}.json", json.dumps(written, indent=1) + "\n")


def _data_root(root: str | None) -> str:
    return f"with `data_root={root}`" if root else "without `data_root`"
