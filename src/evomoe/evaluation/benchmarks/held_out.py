"""Your own held-out records, in the formats that training reads: what a person asks in them is asked, and the answer must match.

A question within a conversation is asked with what was said before it, as the record has it. An answer matches if it has the same
words, whatever their case, spaces and final full stop. Of answers of several words the overlap says more: F1 of the words that
answer and record have in common.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from evomoe.data.turns import IMAGE_MARK, BadRecordError, Record
from evomoe.evaluation.benchmark import Benchmark, Findings, ProtocolName, Question, Row
from evomoe.evaluation.data_folder import DataFile, DataFolder
from evomoe.evaluation.pictures import FilePicture, Picture
from evomoe.evaluation.statistics import accuracy, error_of_mean, percent
from evomoe.support.content import text_hash

FILES = tuple(DataFile(f"records{suffix}", "you: held-out records, as for training") for suffix in (".json", ".jsonl"))


@dataclass(frozen=True)
class HeldPicture:
    """A picture that a record itself holds."""

    image: Image.Image = field(repr=False, compare=False)
    key: str

    def open(self) -> Image.Image:
        from evomoe.data.images import open_rgb

        return open_rgb(self.image, self.key)

    def fingerprint(self) -> str:
        image = self.open()
        return text_hash([str(image.size), image.tobytes().hex()])


def load(folder: DataFolder) -> list[Question]:
    """A question for each answer that is learned and follows one."""
    from evomoe.data.records import bad_summary, load_records

    path = folder.need(*FILES)
    records = load_records(path, on_bad_record="skip")
    if records.skipped:
        raise BadRecordError(bad_summary(str(path), records.skipped, len(records) + len(records.skipped), "Repair them."))
    folder.note(path.name, path.read_bytes())
    return [question for number, record in enumerate(records) for question in _questions(number, record)]


def _questions(number: int, record: Record) -> list[Question]:
    if record.videos:
        raise ValueError(f"{record.where}: it has a video; `held-out` asks about pictures and text alone.")
    pictures: list[Picture] = [
        FilePicture(image) if isinstance(image, str) else HeldPicture(image, f"{record.where}, picture {place}")
        for place, image in enumerate(record.images)
    ]
    questions, shown = [], 0
    for place, turn in enumerate(record.turns):
        shown += turn.text.count(IMAGE_MARK) if turn.role != "assistant" else 0
        before = record.turns[:place]
        if turn.role == "assistant" and turn.learned and before[-1].role == "user":
            questions.append(
                Question(
                    f"{number}-{place}", before[-1].text, answer=turn.text, turns=before, turn_pictures=tuple(pictures[:shown])
                )
            )
    return questions


def plain(answer: str) -> str:
    """An answer as it is compared: small letters, single spaces, no full stop at the end."""
    return " ".join(answer.lower().split()).removesuffix(".")


def overlap(answer: str, right: str) -> float:
    """F1 of the words of two plain texts, 0 to 1."""
    given, wanted = Counter(answer.split()), Counter(right.split())
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if common else 0.0


def score(questions: Sequence[Question], answers: Mapping[str, str], protocol: ProtocolName = "official") -> Findings:
    """The share of answers that match, the same under every protocol. An empty answer is unparsable."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for question in questions:
        answer, right = plain(answers[question.id]), plain(question.answer)
        points["of one word" if len(right.split()) == 1 else "of several words"].append(
            (float(answer == right), overlap(answer, right))
        )
    everything = [point for group in points.values() for point in group]
    table = {name: _row(group) for name, group in sorted(points.items())}
    matches = [match for match, _ in everything]
    return Findings(
        score=percent(sum(matches), len(matches)),
        unit="accuracy %",
        standard_error=100 * error_of_mean(matches),
        error_method="of the mean over questions",
        unparsable=sum(not answers[question.id].strip() for question in questions),
        tables={"right answers": {**table, "all": _row(everything)}},
    )


def _row(group: Sequence[tuple[float, float]]) -> Row:
    matches, overlaps = zip(*group, strict=True)
    return {"F1 of words": percent(sum(overlaps), len(overlaps)), **accuracy(matches)}


BENCHMARK = Benchmark(
    "held-out", "Your own held-out records, held-out/records.json below --data-root: the answers must match.", load,
    lambda question, protocol: question.text, score, max_new_tokens=256, pictures=False,
)  # fmt: skip
