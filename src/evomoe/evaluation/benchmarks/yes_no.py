"""Yes or no, as the tools for POPE and MME read it in an answer; what they can make nothing of is ""."""

from evomoe.evaluation.benchmarks.vqa_answers import vlmevalkit_without_punctuation


def pope_reading(answer: str) -> str:
    """``evaluate.py`` of POPE: "no" if a word before the first period is No, no or not, and "yes" for everything else."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def exact_reading(answer: str) -> str:
    """lmms-eval for POPE: nothing beside the word, not even a period."""
    word = answer.lower().strip()
    return word if word in ("yes", "no") else ""


def mme_reading(answer: str) -> str:
    """``calculation.py`` of MME: the first four characters hold "yes", or else "no"."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else ""


def lmms_mme_reading(answer: str) -> str:
    """lmms-eval for MME: the same after periods and outer white space are gone; "y" and "n" count too."""
    text = answer.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or mme_reading(text)


def vlmevalkit_reading(answer: str) -> str:
    """VLMEvalKit without a judge: exactly one of the words "yes" and "no" occurs, wherever."""
    found = {"yes", "no"} & set(vlmevalkit_without_punctuation(answer.lower()).split())
    return found.pop() if len(found) == 1 else ""
