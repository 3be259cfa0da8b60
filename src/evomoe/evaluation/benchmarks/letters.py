"""Choices with letters: how they are written in prompts, and which letter an answer gives; "" if none can be read."""

import re
import string
from collections.abc import Mapping, Sequence

LETTERS: str = string.ascii_uppercase


def lettered(choices: Sequence[str]) -> str:
    """The choices, each on a line of its own: "A. one", "B. two"."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def vlmevalkit_prompt(question: str, hint: str, choices: Sequence[str]) -> str:
    """What VLMEvalKit asks wherever there are choices; the space before the last line's end is its own."""
    start = f"Hint: {hint}\n" if hint else ""
    ask = "Please select the correct answer from the options above. \n"
    return f"{start}Question: {question}\nOptions:\n{lettered(choices)}\n{ask}"


def scienceqa_letter(answer: str, choices: Sequence[str]) -> str:
    """``eval_science_qa.py`` of LLaVA: the bare letter, "B. ...", or one "The answer is B." (its last period: any character)."""
    if answer in ("A", "B", "C", "D", "E"):
        letter = answer
    elif answer[1:3] == ". " and answer[0] in "ABCDE":
        letter = answer[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", answer)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter in tuple(LETTERS[: min(5, len(choices))]) else ""


def lmms_scienceqa_letter(answer: str, choices: Sequence[str]) -> str:
    """lmms-eval for ScienceQA: the bare letter of either case, or a capital and a period."""
    answer = answer.strip()
    letter = answer[0] if len(answer) >= 2 and answer[0].isupper() and answer[1] == "." else answer.upper()
    return letter if letter in tuple(LETTERS[: len(choices)]) else ""


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED_CALL = "Failed to obtain answer via API"
_AROUND_LETTERS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_ANSWER_IS = re.compile(r"(?i)answer\s+is\s+\**([ABCD])\**")


def vlmevalkit_letter(answer: str, choices: Mapping[str, str]) -> str:
    """VLMEvalKit without a judge, which is MMBench's own rule: a single letter among the last words, or else a single choice.

    Args:
        answer: what the model said.
        choices: the texts by letter.
    """
    words = answer.translate(_AROUND_LETTERS).split()
    found = [letter for letter in choices if letter in words]
    if _FAILED_CALL not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return ""
        if len(found) == 1 and words.index(found[0]) > len(words) - 5:
            return found[0]
        if not found and "Z" in words:
            return ""
        stated = _ANSWER_IS.search(answer)
        if stated and stated[1].upper() in choices:
            return stated[1].upper()
    if len(answer.lower()) > 2 * sum(map(len, choices.values())):
        return ""
    return _only_choice_within(answer, choices)


def _only_choice_within(answer: str, choices: Mapping[str, str]) -> str:
    within = [letter for letter, choice in choices.items() if choice.lower() in answer.lower()]
    return within[0] if len(within) == 1 else ""


_AROUND_LETTER = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")
)  # fmt: skip


def lmms_letter(answer: str, choices: Mapping[str, str]) -> str:
    """lmms-eval for MMBench without a judge: a single letter, plain or in marks; a single choice; or the likeliest letter."""
    answer = answer.strip()
    return _lmms_single_letter(answer) or _only_choice_within(answer, choices) or _lmms_likeliest(answer, sorted(choices))


def _lmms_single_letter(answer: str) -> str:
    words = answer.split()
    for before, after in (("", ""), *_AROUND_LETTER):
        found = [letter for letter in "ABCDE" if before + letter + after in words]
        an_article = (before, after) == ("", "") and "A" in words and len(words) > 3
        if len(found) == 1 and not an_article and _FAILED_CALL not in answer:
            return found[0]
    return ""


_PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is", "best answer is",
    "the correct option is", "correct option is", "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))


def _lmms_likeliest(answer: str, letters: Sequence[str]) -> str:
    """lmms-eval's ``mcq_extract``: the form that it trusts most, and among equals the last."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    bare, lower = text.strip(), text.lower()
    found = [(trust, text.rfind(form.format(letter)), letter) for form, trust in _FORMS for letter in letters]
    for phrase in _PHRASES:
        if (start := lower.find(phrase)) >= 0:
            found += [(7, text.find(letter, start + len(phrase)), letter) for letter in letters]
    found += [(10, 0, letter) for letter in letters if bare.startswith(letter) and not bare[1:2].isalpha()]
    found += [(9, len(text) - 1, letter) for letter in letters if bare.endswith(letter) and not bare[-2:-1].isalpha()]
    found = [candidate for candidate in found if candidate[1] >= 0]
    found = found or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else ""
