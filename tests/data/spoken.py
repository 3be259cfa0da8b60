"""Records made by hand, and the answers that an item teaches."""

from evomoe.data.labels import IGNORED
from evomoe.data.records import Record, Turn

END = "</s>\n"


def record(*turns: tuple[str, str], images=(), where: str = "data, record 0") -> Record:
    return Record(where, tuple(str(image) for image in images), tuple(Turn(*turn) for turn in turns))


def answers(item: dict, tokenizer) -> str:
    return tokenizer.decode(item["labels"][item["labels"] != IGNORED])
