"""POPE: 8,910 or 9,000 questions whether an object is in a picture, in three splits that differ in the objects that are not.

Data, below ``DIR/pope``: ``coco/coco_pope_{random,popular,adversarial}.json`` (one JSON object a line) and COCO's ``val2014/``;
or the parquet of lmms-lab-encoder/POPE, which has 3,000 questions in each split. LLaVA-1.5's numbers are on the older files,
with 2,910 random ones.

Rule: POPE's ``evaluate.py``, as LLaVA uses it: whatever does not say no counts as yes; the score is the mean F1 of the three
splits. lmms-eval pools the splits, wants the bare word, leaves other answers out of recall, and its yes ratio is that of the
labels. VLMEvalKit pools too; an answer with both words or neither is wrong, and counts as no in precision and recall. An
answer is unparsable if the rule finds neither; the official rule always finds one, and there it is one in which not exactly
one of the words "yes" and "no" occurs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from evomoe.data.prompts import SHORT_ANSWER
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question, Row
from evomoe.evaluation.benchmarks.yes_no import exact_reading, pope_reading, vlmevalkit_reading
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.fields import values
from evomoe.evaluation.foreign_answers import ForeignAnswer, ForeignFiles, Key, Pairing
from evomoe.evaluation.pictures import CellPicture, picture_file
from evomoe.evaluation.statistics import bootstrap_error, percent

SPLITS = ("random", "popular", "adversarial")
ORIGIN = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
REPOSITORY, SIZE = "lmms-lab-encoder/POPE", "510 MB"
# LLaVA's question file numbers the splits one after the other.
_LLAVA_SPLITS = ("adversarial", "random", "popular")
_LLAVA_STEP = 10_000_000
_LLAVA_IDS = (
    "; LLaVA's ids for POPE are 1 and on (adversarial), 10,000,001 and on (random), 20,000,001 and on (popular), "
    "and ids such as 'adversarial/1' are understood too"
)
Pair = tuple[str, str]  # the label, and what is read in the answer
READINGS = {"official": pope_reading, "lmms-eval": exact_reading, "vlmevalkit": vlmevalkit_reading}


def load(folder: DataFolder) -> list[Question]:
    """Ids are split and number, such as "adversarial/1"; types are the splits.

    Raises:
        ValueError: a split has no questions.
    """
    files = {split: DataFile(f"coco/coco_pope_{split}.json", ORIGIN) for split in SPLITS}
    found = folder.find(*files.values()) is not None
    questions = _from_files(folder, files) if found else _from_parquet(folder)
    for split in SPLITS:
        if not any(question.type == split for question in questions):
            where = folder.need(files[split]) if found else REPOSITORY
            raise ValueError(
                f"{where}: there are no questions of the split {split}; the score is the mean of all three. Get the whole file."
            )
    return questions


def _from_files(folder: DataFolder, files: Mapping[str, DataFile]) -> list[Question]:
    images, questions = folder.images("val2014"), []
    for split, file in files.items():
        path = folder.need(file)
        for number, record in enumerate(folder.json_lines(path), 1):
            where = f"{path}, record {number}"
            (identity,) = values(record, where, "question_id", kind=str | int)
            image, text, label = values(record, where, "image", "text", "label", kind=str)
            picture = picture_file(images, image, where)
            questions.append(Question(f"{split}/{identity}", text, picture, _label(label, where), split))
    return questions


def _from_parquet(folder: DataFolder) -> list[Question]:
    rows = folder.parquet(REPOSITORY, None, "test", SIZE)
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        where = f"{REPOSITORY}, row {number}"
        (identity,) = values(row, where, "question_id", kind=str | int)
        text, label, split, source = values(row, where, "question", "answer", "category", "image_source", kind=str)
        picture = CellPicture(rows, number, source, root=folder.path)
        questions.append(Question(f"{split}/{identity}", text, picture, _label(label, where), split))
    return questions


def _label(label: str, where: str) -> str:
    if label not in ("yes", "no"):
        raise ValueError(f"{where}: the label {label!r} is neither yes nor no.")
    return label


def prompt(question: Question, protocol: ProtocolName) -> str:
    """VLMEvalKit asks the bare question."""
    return question.text if protocol == "vlmevalkit" else question.text.strip() + SHORT_ANSWER


def score(questions: Sequence[Question], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """Mean F1 of the splits under the official protocol, F1 over all questions under the others."""
    read, by_picture = READINGS[protocol], defaultdict(lambda: defaultdict(list))
    for question in questions:
        pair = (question.answer, read(answers[question.id]))
        of_picture = by_picture[question.picture.key if question.picture else question.id]
        of_picture[question.type].append(pair)
        of_picture["all"].append(pair)
    groups = {name: [pair for of_picture in by_picture.values() for pair in of_picture[name]] for name in ("all", *SPLITS)}
    tables = {name: _row(pairs, protocol) for name, pairs in groups.items() if pairs}
    official = protocol == "official"
    parts = [name for name in SPLITS if name in tables] if official else ["all"]
    parse = vlmevalkit_reading if official else read
    return Findings(
        score=sum(tables[part]["F1"] for part in parts) / len(parts),
        unit="mean F1 of the splits, %" if official else "F1 over all questions, %",
        standard_error=100 * bootstrap_error(_units(by_picture.values(), parts, protocol), _mean_f1),
        error_method="bootstrap over pictures",
        unparsable=sum(not parse(answers[question.id]) for question in questions),
        tables={"split": tables},
    )


def _counts(pairs: Sequence[Pair], protocol: ProtocolName) -> tuple[int, int, int]:
    """True positives, false positives, false negatives."""
    negative = {"no", ""} if protocol == "vlmevalkit" else {"no"}
    return (
        sum(label == reading == "yes" for label, reading in pairs),
        sum(label == "no" and reading == "yes" for label, reading in pairs),
        sum(label == "yes" and reading in negative for label, reading in pairs),
    )


def _units(pictures: Iterable[Mapping[str, Sequence[Pair]]], parts: Sequence[str], protocol: ProtocolName) -> list[list[int]]:
    """For each picture the counts of each part, one after the other."""
    return [[count for part in parts for count in _counts(of_picture[part], protocol)] for of_picture in pictures]


def _mean_f1(sums: Sequence[float]) -> float:
    return sum(_f1(*sums[i : i + 3]) for i in range(0, len(sums), 3)) / (len(sums) // 3)


def _row(pairs: Sequence[Pair], protocol: ProtocolName) -> Row:
    true, false, missed = _counts(pairs, protocol)
    yes = [label if protocol == "lmms-eval" else reading for label, reading in pairs].count("yes")
    return {
        "accuracy": percent(sum(label == reading for label, reading in pairs), len(pairs)),
        "precision": percent(true, true + false),
        "recall": percent(true, true + missed),
        "F1": 100 * _f1(true, false, missed),
        "yes ratio": percent(yes, len(pairs)),
        "questions": len(pairs),
    }


def _f1(true: float, false: float, missed: float) -> float:
    """0 where a denominator is 0, as for a model that never says yes; the official script stops there."""
    if not true:
        return 0.0
    precision, recall = true / (true + false), true / (true + missed)
    return 2 * precision * recall / (precision + recall)


def _unanswered(question: Question) -> str:
    """Not the label: the official rule reads "yes" out of nothing."""
    return "no" if question.answer == "yes" else "yes"


def _question_keys(questions: Sequence[Question]) -> list[Key]:
    """Split and line of each question: LLaVA pairs answers and labels by their lines."""
    lines: Counter[str] = Counter()
    keys: list[Key] = []
    for question in questions:
        lines[question.type] += 1
        keys.append((question.type, f"line {lines[question.type]}"))
    return keys


def _answer_key(answer: ForeignAnswer) -> Key:
    """The same of an answer: LLaVA's ids count the lines of a split. Any other id is that of no question."""
    number = int(answer.id) // _LLAVA_STEP if answer.id.isdecimal() else -1
    if number not in range(len(_LLAVA_SPLITS)):
        return (answer.id,)
    return _LLAVA_SPLITS[number], f"line {int(answer.id) % _LLAVA_STEP}"


_FOREIGN_FILES = ForeignFiles(
    Pairing(_question_keys, _answer_key, needs_prompts=False, hint=_LLAVA_IDS), versions="random has 2,910 or 3,000 questions"
)

BENCHMARK = Benchmark(
    "pope", "POPE: is an object in the picture? Three splits, mean F1.", load, prompt, score, max_new_tokens=128,
    unanswered=_unanswered, foreign_files=_FOREIGN_FILES, counts=(8910, 9000), column="POPE",
)  # fmt: skip
