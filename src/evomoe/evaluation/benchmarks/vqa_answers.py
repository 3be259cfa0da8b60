"""Answers as VQA's official evaluation compares them, and the readings of it that other programs have.

The rule is that of ``vqaEval.py`` (GT-Vision-Lab/VQA), its slips included: the look-behind of its pattern for periods is
malformed, so that every period goes that no digit follows, and it hands a flag to ``re.sub`` where the number of
replacements belongs, so that at most 32 periods go.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}
ANNOTATORS = 10

# Every spelling of these that lacks one apostrophe becomes the full one.
_FULL = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "mightn't",
    "mightn't've",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "'ow's'at",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'll",
    "y'all'd've",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _FULL for i, letter in enumerate(word) if letter == "'"} | {
    "somebody'd": "somebodyd"  # the other way round in the official table
}

_MOST_PERIODS = int(re.UNICODE)
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_AWAY_FROM_DIGITS = re.compile(r"(?<!\d)\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"\d,+\d")


def _without_punctuation(text: str, comma: re.Pattern[str], period: re.Pattern[str]) -> str:
    """Deletes a mark that stands beside a space, or every mark in a text with a comma in a number; else it becomes a space."""
    result, number = text, comma.search(text) is not None
    for mark in PUNCTUATION:
        result = result.replace(mark, "" if number or mark + " " in text or " " + mark in text else " ")
    return period.sub("", result, count=_MOST_PERIODS)


def _plain_words(text: str) -> str:
    """Lower case, digits for number words, no articles, contractions with their apostrophes."""
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_answer(text: str) -> str:
    """An answer as ``vqaEval.py`` compares it, where the annotators do not all agree."""
    return _plain_words(_without_punctuation(one_line(text), _COMMA_IN_NUMBER, _PERIOD))


def lmms_vqa_answer(text: str) -> str:
    """An answer as lmms-eval compares it for VQAv2."""
    return _plain_words(_without_punctuation(one_line(text), _COMMAS_IN_NUMBER, _PERIOD))


def evalai_answer(text: str) -> str:
    """An answer as ``EvalAIAnswerProcessor`` writes it: TextVQA's rule, and LLaVA's before it uploads VQAv2's answers."""
    return lmms_vqa_answer(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def vlmevalkit_without_punctuation(text: str) -> str:
    """VLMEvalKit's reading, in which a period beside a digit stays."""
    return _without_punctuation(text, _COMMA_IN_NUMBER, _PERIOD_AWAY_FROM_DIGITS)


def vlmevalkit_vqa_answer(text: str) -> str:
    """An answer as VLMEvalKit compares it for TextVQA."""
    return _plain_words(vlmevalkit_without_punctuation(one_line(text)))


def leave_one_out(answer: str, annotators: Sequence[str]) -> float:
    """VQA accuracy: the mean over annotators of min(1, how many of the *others* gave the answer / 3)."""
    agreeing = sum(other == answer for other in annotators)
    return sum(min(1, (agreeing - (own == answer)) / 3) for own in annotators) / len(annotators)


class Remembered:
    """A normaliser that remembers, since a benchmark's answers repeat."""

    def __init__(self, normalise: Callable[[str], str]) -> None:
        self._normalise = normalise
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._known:
            self._known[text] = self._normalise(text)
        return self._known[text]


def ten_answers(answers: Any, where: str) -> tuple[str, ...]:
    """The annotators' answers of a record: strings, VQA's objects, or columns of them as in parquet.

    Raises:
        ValueError: there are not ten of them, or one is no text.
    """
    if isinstance(answers, dict):
        answers = answers.get("answer")
    if not isinstance(answers, list | tuple):
        raise ValueError(f"{where}: the annotators' answers must be a list, not {answers!r:.80}.")
    texts: tuple[Any, ...] = tuple(answer.get("answer") if isinstance(answer, dict) else answer for answer in answers)
    if len(texts) != ANNOTATORS:
        raise ValueError(f"{where}: {ANNOTATORS} annotators expected, but {len(texts)} found.")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ValueError(f"{where}: annotator {number}'s answer must be text, not {text!r:.80}.")
    return texts
