"""A benchmark's questions: where its data lie, and the questions in them, checked. Needs no torch."""

from pathlib import Path

from evomoe import mini
from evomoe.evaluation.benchmark import Benchmark, Question
from evomoe.evaluation.checks import check_unique
from evomoe.evaluation.data_folder import DataFolder
from evomoe.support.errors import OptionError


def find_data(benchmark: Benchmark, root: str | None) -> DataFolder:
    """Where a benchmark's data lie: below ``root``; those of the mini world are made when they are first asked for.

    Raises:
        OptionError: ``root`` is a whole mini world, not one of its splits.
    """
    if root is None and benchmark.mini:
        root = str(mini.ensure(training=False) / "test")
    if root is None:
        return benchmark.data(None)
    if benchmark.mini and (Path(root) / "test").is_dir():
        raise OptionError(
            "data_root", f"{root} is a whole world; name one of its splits, {Path(root) / 'test'} or .../validation."
        )
    places = [Path(root) / name for name in benchmark.folders or (benchmark.name,)]
    return benchmark.data(next((place for place in places if place.is_dir()), places[0]))


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
                "what is there with `any_version`."
            )
        folder.check_version(len(questions), benchmark.counts)
    return questions
