"""Our readings and scores against those of LLaVA and lmms-eval themselves, on thousands of generated answers."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracles import ask

from evomoe.evaluation.benchmark import Question
from evomoe.evaluation.benchmarks import gqa, letters, mmbench, mme, pope, sqa, textvqa, vqa_answers, vqav2, yes_no
from evomoe.evaluation.pictures import FilePicture

FOLDER = Path(os.environ.get("EVOMOE_ORACLES", "absent"))
COUNT = int(os.environ.get("EVOMOE_ORACLE_ANSWERS", "3000"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.is_dir(), reason="EVOMOE_ORACLES names no folder with the oracles")]

WORDS = [
    *(
        "a",
        "an",
        "the",
        "The",
        "A",
        "none",
        "zero",
        "one",
        "Two",
        "ten",
        "eleven",
        "dont",
        "couldnt've",
        "somebody'd",
        "Im",
        "oclock",
    ),
    *("it's", "man's", "yes", "Yes", "YES", "no", "No", "NO", "not", "nope", "know", "Not sure", "y", "n", "Y.", "yes,", "no."),
    *("1,000", "1,,2", "3.5", ".5", "15.", "1.000,5", "12:30", "$5", "50%", "1/2", "t-shirt", "red", "(red)", "red!", "...", "?"),
    *(
        "B",
        "b",
        "B.",
        "(B)",
        "B:",
        "(C).",
        "**D**",
        "A,",
        "E",
        "F",
        "AB",
        "B)",
        "The answer is B.",
        "answer is (C)",
        "Z",
        "banana",
    ),
    *("café", "½", "٣,٤", "naïve", "ﬁ", "İ", "東京", "答案是", "ß", "“B”", "\u200b", "Failed to obtain answer via API"),
    *(";", "/", "[", "]", '"', "{", "}", "=", "+", "\\", "_", "-", ">", "<", "@", "`", "'", "&", "#", "*"),
]
SEPARATORS = [" ", " ", " ", "  ", "\n", "\t", ", ", ". ", ".", ",", "-", "", "'s ", "\u00a0"]
ANSWERS = st.one_of(
    st.sampled_from(WORDS),
    st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SEPARATORS)), max_size=6).map(
        lambda parts: "".join(word + separator for word, separator in parts)
    ),
    st.text(max_size=10),
)


def generated(strategy, count=COUNT):
    """The same examples of a strategy in every run."""
    found = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    assert len(found) > count // 2
    return found


def differing(examples, ours, theirs):
    return [row for row in zip(examples, ours, theirs, strict=True) if row[1] != row[2]]


def test_normalisers():
    texts = generated(ANSWERS)
    evalai, plain = ask(FOLDER, "evalai", texts)
    assert not differing(texts, [vqa_answers.evalai_answer(text) for text in texts], evalai)
    lines = [vqa_answers.one_line(text) for text in texts]
    assert not differing(texts, [vqa_answers.lmms_vqa_answer(text) for text in texts], ask(FOLDER, "evalai", lines)[1])
    assert len(plain) == len(texts)


def with_annotators():
    """An answer, and ten annotators' who often agree with it, in other spellings too."""
    seeds = generated(st.tuples(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3), st.integers(0, 2**32)))
    pairs = []
    for answer, others, seed in seeds:
        draw = random.Random(seed)
        spellings = [answer, answer.lower(), f"{answer}.", f"the {answer}"]
        shares = [draw.random() for _ in range(10)]
        agreement = draw.random()
        pairs.append([answer, [draw.choice(spellings) if share < agreement else draw.choice(others) for share in shares]])
    return pairs


def test_textvqa():
    pairs = with_annotators()
    made = [textvqa.TextVQAQuestion(str(i), "?", answers=tuple(ten)) for i, (_, ten) in enumerate(pairs)]
    ours = [textvqa.score([question], {question.id: pair[0]}).score / 100 for question, pair in zip(made, pairs, strict=True)]
    assert len(set(ours)) > 4
    for scorer in ("m4c", "lmms_textvqa"):
        theirs = ask(FOLDER, scorer, pairs)
        assert not [row for row in zip(pairs, ours, theirs, strict=True) if abs(row[1] - row[2]) > 1e-12]


def test_vqav2_of_lmms_eval():
    pairs = with_annotators()
    made = [vqav2.VQAQuestion(str(i), "?", answer="x", answers=tuple(ten)) for i, (_, ten) in enumerate(pairs)]
    ours = [
        vqav2.score([question], {question.id: pair[0]}, "lmms-eval").score / 100
        for question, pair in zip(made, pairs, strict=True)
    ]
    theirs = ask(FOLDER, "lmms_vqav2", pairs)
    assert not [row for row in zip(pairs, ours, theirs, strict=True) if abs(row[1] - row[2]) > 1e-12]


def test_gqa_of_lmms_eval():
    pairs = generated(st.tuples(ANSWERS, st.sampled_from(["red", "yes", "no", "t-shirt", "15", "banana"])))
    pairs += [(f"{right}{end}", right) for _, right in pairs for end in (".", " ", "!", "\n")]
    given_, right = gqa.NORMALISERS["lmms-eval"]
    ours = [float(given_(answer) == right(wanted)) for answer, wanted in pairs]
    assert not differing(pairs, ours, ask(FOLDER, "lmms_gqa", pairs))


def of_pope(pairs):
    picture = FilePicture("x")
    questions = [Question(str(i), "?", picture, label, "random") for i, (_, label) in enumerate(pairs)]
    return questions, {question.id: text for question, (text, _) in zip(questions, pairs, strict=True)}


@pytest.mark.parametrize(
    ("scorer", "protocol", "read"),
    [("eval_pope", "official", yes_no.pope_reading), ("lmms_pope", "lmms-eval", yes_no.exact_reading)],
)
def test_pope(scorer, protocol, read):
    pairs = generated(st.tuples(ANSWERS, st.sampled_from(["yes", "no"])))
    readings, numbers = ask(FOLDER, scorer, pairs)
    theirs = [reading if reading in ("yes", "no") else "" for reading in readings]
    assert not differing(pairs, [read(text) for text, _ in pairs], theirs)
    questions, answers = of_pope(pairs)
    result = pope.score(questions, answers, protocol)
    ours = result.tables["split"]["random"]
    names = {"F1 score": "F1", "f1_score": "F1", "yes_ratio": "yes ratio", "Yes ratio": "yes ratio"}
    for name, number in numbers.items():
        assert ours[names.get(name, name.lower())] == pytest.approx(100 * number, rel=1e-12), name


def of_scienceqa():
    return generated(st.tuples(ANSWERS, st.integers(2, 5), st.integers(0, 1), st.booleans()))


def test_scienceqa():
    items = of_scienceqa()
    parsed, right, said = ask(FOLDER, "eval_science_qa", items)
    ours = [letters.scienceqa_letter(text, "x" * count) for text, count, _, _ in items]
    theirs = [letter if letter in tuple("ABCDE"[:count]) else "" for letter, (_, count, _, _) in zip(parsed, items, strict=True)]
    assert not differing(items, ours, theirs)
    made = [
        sqa.SQAQuestion(str(i), "?", FilePicture("x") if image else None, "ABCDE"[answer], choices=("x",) * count)
        for i, (_, count, answer, image) in enumerate(items)
    ]
    answers = {question.id: item[0] for question, item in zip(made, items, strict=True)}
    result = sqa.score(made, answers)
    overall = result.tables["overall"]["all"]
    assert said == (
        f"Total: {len(items)}, Correct: {len(right)}, Accuracy: {overall['accuracy']:.2f}%, IMG-Accuracy: {result.score:.2f}%"
    )
    lmms = ask(FOLDER, "lmms_scienceqa", items)
    ours = [float(letters.lmms_scienceqa_letter(text, "x" * count) == "ABCDE"[answer]) for text, count, answer, _ in items]
    assert not differing(items, ours, lmms)


def test_mme_of_lmms_eval():
    texts = generated(ANSWERS)
    theirs = [reading.replace("other", "") for reading in ask(FOLDER, "lmms_mme", texts)]
    assert not differing(texts, [mme.READINGS["lmms-eval"](text) for text in texts], theirs)


def test_mmbench_of_lmms_eval():
    choices = [
        {"A": "red", "B": "banana", "C": "no", "D": "t-shirt"},
        {"A": "Yes", "B": "No"},
        {"A": "1,000", "B": "café", "C": "B"},
    ]
    rows = generated(st.tuples(ANSWERS, st.sampled_from(choices), st.sampled_from("AB")))
    made = [
        mmbench.MMBenchQuestion(str(i), "?", None, right, choices=tuple(offered.values()))
        for i, (_, offered, right) in enumerate(rows)
    ]
    hits, mean = ask(FOLDER, "lmms_mmbench", rows)
    answers = {question.id: row[0] for question, row in zip(made, rows, strict=True)}
    ours = [mmbench.score([question], answers, "lmms-eval").score / 100 for question in made]
    assert not differing(rows, ours, hits)
    assert mmbench.score(made, answers, "lmms-eval").score == pytest.approx(100 * mean)


def test_prompts_of_lmms_eval():
    texts = st.one_of(ANSWERS, ANSWERS.map(lambda text: f"{text} Please answer yes or no."))
    choice = st.sampled_from(["red", "a b", "1,000", "café", "B."])
    items = generated(st.tuples(texts, ANSWERS, st.lists(choice, min_size=2, max_size=4)), COUNT // 4)
    for (text, hint, choices), theirs in zip(items, ask(FOLDER, "lmms_prompts", items), strict=True):
        offered = {"choices": tuple(choices), "hint": hint}
        asked = {
            "vqav2": (vqav2, vqav2.VQAQuestion("1", text)),
            "textvqa": (textvqa, textvqa.TextVQAQuestion("1", text)),
            "textvqa-ocr": (textvqa, textvqa.TextVQAQuestion("1", text, ocr_tokens=tuple(choices))),
            "pope": (pope, Question("1", text)),
            "mme": (mme, mme.MMEQuestion("1", text)),
            "sqa": (sqa, sqa.SQAQuestion("1", text, **offered)),
            "mmbench": (mmbench, mmbench.MMBenchQuestion("1", text, **offered)),
        }
        assert {name: module.prompt(question, "lmms-eval") for name, (module, question) in asked.items()} == theirs
