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

from collections import defaultdict
from collections.abc import Mapping, Sequence

from evomoe.evaluation.base import SHORT_ANSWER, Benchmark, ProtocolName, Question, Result, Row, check_unique
from evomoe.evaluation.benchmarks.yes_no import exact_reading, pope_reading, vlmevalkit_reading
from evomoe.evaluation.sources import CellPicture, DataFile, DataFolder, FilePicture, values
from evomoe.evaluation.statistics import bootstrap_error, percent

SPLITS = ("random", "popular", "adversarial")
ORIGIN = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
REPOSITORY = "lmms-lab-encoder/POPE"
READINGS = {"official": pope_reading, "lmms-eval": exact_reading, "vlmevalkit": vlmevalkit_reading}


def load(folder: DataFolder) -> list[Question]:
    """Ids are split and number, such as "adversarial/1"; types are the splits."""
    files = {split: DataFile(f"coco/coco_pope_{split}.json", ORIGIN) for split in SPLITS}
    found = folder.find(*files.values()) is not None
    questions = _from_files(folder, files) if found else _from_parquet(folder)
    check_unique("pope", [question.id for question in questions])
    return questions


def _from_files(folder: DataFolder, files: Mapping[str, DataFile]) -> list[Question]:
    images, questions = folder.images("val2014"), []
    for split, file in files.items():
        path = folder.need(file)
        for number, record in enumerate(folder.json_lines(path), 1):
            where = f"{path}, record {number}"
            identity, image, text, label = values(record, where, "question_id", "image", "text", "label")
            picture = FilePicture(images.resolve(image))
            questions.append(Question(f"{split}/{identity}", text, picture, _label(label, where), split))
    return questions


def _from_parquet(folder: DataFolder) -> list[Question]:
    rows = folder.parquet(REPOSITORY, None, "test")
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        where = f"{REPOSITORY}, row {number}"
        identity, text, label, split, source = values(row, where, "question_id", "question", "answer", "category", "image_source")
        picture = CellPicture(rows, number, source)
        questions.append(Question(f"{split}/{identity}", text, picture, _label(label, where), split))
    return questions


def _label(label: str, where: str) -> str:
    if label not in ("yes", "no"):
        raise ValueError(f"{where}: the label {label!r} is neither yes nor no.")
    return label


def prompt(question: Question, protocol: ProtocolName) -> str:
    """VLMEvalKit asks the bare question."""
    return question.text if protocol == "vlmevalkit" else question.text.strip() + SHORT_ANSWER


def score(questions: Sequence[Question], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Result:
    """Mean F1 of the splits under the official protocol, F1 over all questions under the others."""
    readings = [READINGS[protocol](answers[question.id]) for question in questions]
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("all", *SPLITS)}
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {split: [0, 0, 0] for split in SPLITS})
    for question, reading in zip(questions, readings, strict=True):
        pair = (question.answer, reading)
        groups["all"].append(pair)
        groups[question.type].append(pair)
        added = _positives(pair, protocol)
        of_split = counts[question.picture.key if question.picture else question.id][question.type]
        for i, one in enumerate(added):
            of_split[i] += one
    splits = [split for split in SPLITS if groups[split]]
    tables = {name: _row(pairs, protocol) for name, pairs in groups.items() if pairs}

    def mean_f1(sums: Sequence[float]) -> float:
        return sum(_f1(*sums[i : i + 3]) for i in range(0, len(sums), 3)) / (len(sums) // 3)

    def pooled_f1(sums: Sequence[float]) -> float:
        return _f1(*(sum(sums[i::3]) for i in range(3)))

    by_picture = [[count for split in splits for count in of_picture[split]] for of_picture in counts.values()]
    official = protocol == "official"
    return Result(
        benchmark=BENCHMARK.name,
        protocol=protocol,
        scorer=BENCHMARK.scorer,
        score=sum(tables[split]["F1"] for split in splits) / len(splits) if official else tables["all"]["F1"],
        unit="mean F1 of the splits, %" if official else "F1 over all questions, %",
        standard_error=100 * bootstrap_error(by_picture, mean_f1 if official else pooled_f1),
        error_method="bootstrap over pictures",
        questions=len(questions),
        unparsable=sum(not vlmevalkit_reading(answers[question.id]) for question in questions)
        if official
        else readings.count(""),
        tables={"split": tables},
    )


def _positives(pair: tuple[str, str], protocol: ProtocolName) -> tuple[bool, bool, bool]:
    """Whether it is a true positive, a false positive, a false negative."""
    label, reading = pair
    negative = reading == "no" or (reading == "" and protocol == "vlmevalkit")
    return label == reading == "yes", label == "no" and reading == "yes", label == "yes" and negative


def _row(pairs: Sequence[tuple[str, str]], protocol: ProtocolName) -> Row:
    true, false, missed = (sum(column) for column in zip(*(_positives(pair, protocol) for pair in pairs), strict=True))
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


BENCHMARK = Benchmark(
    "pope", "POPE: is an object in the picture? Three splits, mean F1.", load, prompt, score, max_new_tokens=128, counts=(8910, 9000)
)  # fmt: skip
