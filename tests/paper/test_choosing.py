"""What choosing among experts is worth, on answers whose worth is known."""

from evomoe.evaluation.benchmark import Question
from evomoe.paper.study.choosing import best_for_each_question, described

QUESTIONS = [Question(str(number), "?", answer="yes") for number in range(4)]


def right(answers) -> float:
    return sum(answer == "yes" for answer in answers.values())


def given(*answers: str) -> dict[str, str]:
    return {str(number): answer for number, answer in enumerate(answers)}


def test_each_question_goes_to_an_expert_that_is_right():
    experts = [given("yes", "no", "no", "no"), given("no", "yes", "yes", "no")]
    best, answers = best_for_each_question(QUESTIONS, experts, right)
    assert best == 3 and answers == given("yes", "yes", "yes", "no")
    assert best_for_each_question(QUESTIONS, experts[:1], right) == (1, experts[0])


def test_questions_that_are_scored_together_go_to_one_expert():
    together = [Question(one.id, one.text, answer=one.answer, unit=str(int(one.id) // 2)) for one in QUESTIONS]

    def pairs(answers) -> float:
        return sum(answers[a] == answers[b] == "yes" for a, b in (("0", "1"), ("2", "3")))

    experts = [given("yes", "no", "yes", "no"), given("no", "yes", "yes", "yes")]
    best, answers = best_for_each_question(together, experts, pairs)
    assert best == 1 and answers == experts[1]  # "0" of the first and "1" of the second would be a pair of no expert


def test_in_words():
    found = {"alone": [60.0, 62.0], "disagreement": 12.34, "best": 70.0, "whole": 61.5}
    assert described(found) == (
        "alone 60.0, 62.0; they disagree on 12.3 % of the answers; the best expert for each question would have 70.0; the router has "
        "61.5, -0.5 from the best expert, +0.5 from one drawn at random"
    )
    assert described({"alone": [1.0, 2.0], "disagreement": 3.0}).endswith("3.0 % of the answers")
