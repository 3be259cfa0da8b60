"""Whether a run that goes on is the run that began: what its recipe cannot say, the content of weights and data and the processes.

Files that were not touched since are not read again.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from evomoe.conversion.expert_init import option_from_stage2
from evomoe.data.conversations import ConversationDataset
from evomoe.data.mix import MixedRecords
from evomoe.data.records import Records
from evomoe.data.shards import Shard
from evomoe.data.streamed import StreamedDataset
from evomoe.recipe.data_mix import DataSource
from evomoe.recipe.recipe import Recipe
from evomoe.support.content import file_hash, fingerprint, model_files, text_hash
from evomoe.support.errors import OptionError
from evomoe.support.parse_json import parse_json
from evomoe.support.processes import process_count
from evomoe.support.text import counted
from evomoe.training.checked_run import CheckedRun

logger = logging.getLogger(__name__)

Identity = dict[str, Any]
"""What can be written as JSON; ``identity.json`` in the run's folder."""


def same_run(run: CheckedRun, datasets: Mapping[int, ConversationDataset], anyway: bool = False) -> Identity:
    """What the run is now, which is what it was when it began.

    Args:
        anyway: let it be another one, with a warning.

    Raises:
        OptionError: it is another one, and there is something that it would go on from.
    """
    folder = run.folder
    began = parse_json(folder.identity.read_text(encoding="utf-8"), str(folder.identity)) if folder.identity.is_file() else {}
    before = began if folder.has_begun() and folder.can_resume() else {}
    now = _identity(run.recipe, datasets, before)
    if before and before["processes"] != now["processes"] and _same_steps(run, before["processes"], now["processes"]):
        logger.warning(
            "It had %s and has %d now; its steps take as many records.", _processes(before["processes"]), now["processes"]
        )
        before = before | {"processes": now["processes"]}
    if changed := _changes(before, now):
        said = f"{folder.path} holds a run that is not quite this one: {'; '.join(changed)}."
        if not anyway:
            steps = " Other processes may go on if their steps take as many records: change batch_size or accumulation."
            raise OptionError(
                "output",
                f"{said} Put back what it was, name another folder, or go on all the same: `resume_anyway`."
                f"{steps if before['processes'] != now['processes'] else ''}",
            )
        logger.warning("%s It goes on all the same.", said)
    return now | ({"changes": [*before.get("changes", []), *changed]} if changed or before.get("changes") else {})


def _identity(recipe: Recipe, datasets: Mapping[int, ConversationDataset], before: Identity) -> Identity:
    """What the run is now.

    Args:
        before: what it was when it began; whatever has the same dates is taken from there.
    """
    known = before.get("data", {})
    data: dict[str, Any] = {}
    shards: dict[str, Identity] = {}
    for stage, dataset in datasets.items():
        sources = recipe.sources_of(stage)
        for source, records in zip(sources, _parts(dataset, len(sources)), strict=True):
            data.setdefault(_key(recipe, source), records)
        if isinstance(dataset, StreamedDataset):
            shards |= {_key(recipe, source): _shards(one.shards) for source, one in zip(sources, dataset.sources, strict=True)}
    experts = recipe.init_options.get(option_from_stage2(recipe.expert_init), "")
    return {
        "processes": process_count(),
        "model": _model(recipe.model, before.get("model", {})),
        "experts": file_hash(experts) if 3 in recipe.stages and isinstance(experts, str) and Path(experts).is_file() else "",
        # Others than Records were made by the caller, not read from anywhere.
        "data": {
            name: (one.content(known.get(name, {})) if isinstance(one, Records) else {}) | shards.get(name, {})
            for name, one in data.items()
        },
    }


def _changes(before: Identity, now: Identity) -> list[str]:
    """In which a run differs from what it was when it began, in words; what was not written down then is not compared."""
    found = []
    if before.get("processes", now["processes"]) != now["processes"]:
        found.append(f"it had {_processes(before['processes'])} and has {now['processes']} now")
    then, today = before.get("model", now["model"])["files"], now["model"]["files"]
    if others := sorted(name for name in then.keys() | today.keys() if then.get(name) != today.get(name)):
        more = f" and {counted(len(others) - 1, 'more file')}" if len(others) > 1 else ""
        found.append(f"the model it started from has another {others[0]}{more}")
    if before.get("experts", now["experts"]) != now["experts"]:
        found.append("its file of experts has other content")
    for name, data in now["data"].items():
        if name in before.get("data", {}):
            found += [f"{name} {change}" for change in _data_changes(before["data"][name], data)]
    return found


def _same_steps(run: CheckedRun, then: int, now: int) -> bool:
    """Whether steps take as many records as they did with other processes."""
    began = Recipe.load(run.folder.recipe)
    return all(run.recipe.records_per_step(stage, now) == began.records_per_step(stage, then) for stage in run.recipe.stages)


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _model(model: str, before: Identity) -> Identity:
    seen = _seen(model_files(Path(model))) if Path(model).is_dir() else ""
    if seen and seen == before.get("seen"):
        return before
    return {"seen": seen, "files": fingerprint(model)}


def _shards(shards: Sequence[Shard]) -> Identity:
    """How many there are, and their names and sizes as one hash: to read them all again would take hours."""
    files = (Path(shard.name) for shard in shards)
    return {
        "shards": len(shards),
        "sizes": text_hash([f"{file.name} {file.stat().st_size if file.is_file() else ''}" for file in files]),
    }


def _seen(files: Iterable[Path]) -> str:
    """Names, sizes and dates of files, as one hash; a file that is not there has none."""
    found = []
    for path in files:
        state = path.stat() if path.is_file() else None
        found.append(f"{path} {state and (state.st_size, state.st_mtime_ns)}")
    return text_hash(found)


def _parts(dataset: ConversationDataset, count: int) -> list[Any]:
    """The records of each source, as they were read: good and bad ones."""
    records: Any = dataset.records
    while isinstance(records, Subset):
        records = records.dataset
    return records.parts if isinstance(records, MixedRecords) else [records] * count


def _key(recipe: Recipe, source: DataSource) -> str:
    """A source's name, with the folder of its pictures if that is not the run's one."""
    return source.name if source.image_root == recipe.image_root else f"{source.name}, pictures in {source.image_root}"


def _data_changes(before: Identity, now: Identity) -> list[str]:
    found = []
    if not (before and now):
        return found
    if before.get("shards") != now.get("shards"):
        found.append(f"had {counted(before.get('shards', 0), 'shard')} and has {now.get('shards', 0):,} now")
    elif before.get("sizes", now.get("sizes")) != now.get("sizes"):
        found.append("has shards of other names or sizes")
    elif before["records"] != now["records"]:
        found.append(f"had {counted(before['records'], 'record')} and has {now['records']:,} now")
    elif before["in any order"] != now["in any order"]:
        found.append("has other records")
    elif before["in order"] != now["in order"]:
        found.append("has its records in another order")
    elif before["pictures"] != now["pictures"]:
        found.append("names pictures that have changed")
    return found
