"""Questions in, scores out: order, padding, greedy answers, the built-in benchmark and the command."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import make_language_model, make_llava, make_processor

from evomoe import evaluation, upcycle
from evomoe.data import easy_vqa as easy_vqa_data
from evomoe.evaluation import BENCHMARKS, Benchmark, Item, Score, easy_vqa, evaluate
from evomoe.evaluation.base import Prompts, score_table
from evomoe.evaluation.command import evaluate_checkpoint

QUESTIONS = [
    "what color is the shape ?", "is there a red circle ?", "what", "is there not a blue triangle ? yes or no ?", "red ?",
    "what is the shape ?", "no ?",
]  # fmt: skip


@pytest.fixture
def items(tmp_path) -> list[Item]:
    """Seven questions of five lengths about three pictures."""
    for i, colour in enumerate(("red", "blue", "white")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
    kinds = ("color", "yes/no", "shape")
    return [Item(str(tmp_path / f"{i % 3}.png"), text, "red", kinds[i % 3]) for i, text in enumerate(QUESTIONS)]


@pytest.fixture
def model():
    """A sparse model that gives different answers to different questions."""
    torch.manual_seed(3)
    dense = make_llava().eval()
    for parameter in dense.parameters():
        parameter.data.mul_(4)
    return upcycle(dense, expert_init="noise", init_options={"std": 0.3}, num_experts_per_tok=2)


def test_a_score_counts_by_type_and_in_total():
    items = [Item("", "", "", kind) for kind in ("b", "a", "b", "b")]
    score = Score.of(items, [1.0, 0.5, 0.0, 1.0])
    assert score == Score(62.5, {"a": 50.0, "b": pytest.approx(200 / 3)}, {"a": 1, "b": 3})
    assert list(score.by_type) == ["a", "b"]
    with pytest.raises(ValueError, match="shorter|longer"):
        Score.of(items, [1.0])


def test_prompts_are_batched_by_length_and_padded_on_the_left(items):
    prompts = Prompts(items, make_processor(), batch_size=3)
    assert sorted(i for index, _ in prompts.batches for i in index) == list(range(7))
    assert [len(index) for index, _ in prompts.batches] == [3, 3, 1]
    lengths = [len(QUESTIONS[i]) for index, _ in prompts.batches for i in index]
    assert lengths == sorted(lengths)
    for _, inputs in prompts.batches:
        assert inputs["attention_mask"][:, -1].all() and inputs["pixel_values"].shape == (len(inputs["input_ids"]), 3, 16, 16)
        mask = inputs["attention_mask"]
        assert torch.equal(mask, mask.sort(dim=1).values)  # zeros first
    padded = [inputs for _, inputs in prompts.batches if not inputs["attention_mask"].all()]
    assert padded  # otherwise nothing was tested


def test_a_prompt_is_a_picture_then_the_question_then_the_assistant_s_turn(items):
    processor = make_processor()
    (_, inputs), *_ = Prompts(items[:1], processor).batches
    words = [token for token in processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) if token != "<unk>"]  # spaces
    assert words == ["<|user|>", *["<image>"] * 4, "what", "color", "is", "the", "shape", "?", "<|assistant|>"]
    assert inputs["pixel_values"][0, 0].mean() > 0.9 > -0.9 > inputs["pixel_values"][0, 1].mean()  # red, without blue and green


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_answers_are_the_greedy_ones_one_by_one_in_the_order_of_the_items(items, model, batch_size):
    processor = make_processor()
    expected = []
    for item in items:
        (_, inputs), *_ = Prompts([item], processor).batches
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(tokens, skip_special_tokens=True))
    assert len(set(expected)) > 2
    assert Prompts(items, processor, batch_size).answers(model, 6) == expected


def test_answering_leaves_the_model_in_its_mode_and_ignores_sampling_settings(items, model):
    prompts = Prompts(items, make_processor(), 4)
    greedy = prompts.answers(model, 4)
    model.train()
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    assert prompts.answers(model, 4) == greedy and model.training


def test_a_model_is_scored_by_the_benchmark_s_own_rule(items, model):
    prompts = Prompts(items, make_processor())
    answers = prompts.answers(model, 4)
    seen = []

    def score(answer: str, item: Item) -> float:
        seen.append((answer, item.question))
        return 1.0 if item.type == "shape" else 0.0

    result = evaluate(model, prompts, Benchmark(lambda: items, score, max_new_tokens=4))
    assert seen == list(zip(answers, QUESTIONS, strict=True))
    assert result.by_type == {"color": 0.0, "shape": 100.0, "yes/no": 0.0}


def test_a_picture_that_cannot_be_read_is_named(items, tmp_path):
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="0.png: cannot be read as a picture"):
        Prompts(items, make_processor())
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match="0.png: cannot be read as a picture"):
        Prompts(items, make_processor())


def test_the_table_has_a_column_per_type():
    scores = {"dense": Score(50.0, {"a": 25.0, "b": 75.0}, {"a": 1000, "b": 1000}),
              "sparse": Score(51.25, {"a": 26.0, "b": 76.54}, {"a": 1000, "b": 1000})}  # fmt: skip
    header, _, dense, sparse = score_table("quiz", scores).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["quiz, accuracy %", "a (1,000)", "b (1,000)", "all (2,000)"]
    assert [cell.strip() for cell in dense.split("|")[1:-1]] == ["dense", "25.0", "75.0", "50.00"]
    assert [cell.strip() for cell in sparse.split("|")[1:-1]] == ["sparse", "26.0", "76.5", "51.25"]
    assert len({len(line) for line in (header, dense, sparse)}) == 1


@pytest.mark.parametrize(
    ("answer", "points"),
    [("red", 1), (" Red\n", 1), ("RED", 1), ("blue", 0), ("red red", 0), ("a red one", 0), ("", 0), ("re", 0)],
)
def test_an_answer_to_easy_vqa_must_be_the_word(answer, points):
    assert easy_vqa.score(answer, Item("", "", "red", "color")) == points


def test_the_test_split_of_easy_vqa_is_complete_and_its_types_are_named():
    pytest.importorskip("easy_vqa")
    items = BENCHMARKS["easy-vqa"].items()
    assert len(items) == 9673 and len({item.image_path for item in items}) == 1000
    assert {item.type for item in items} == {"color", "shape", "yes/no", "yes/no negated"}
    assert all(Path(item.image_path).is_file() and item.answer == item.answer.lower() for item in items[::500])
    assert len(easy_vqa.items("train")) == 38575
    first, question = items[0], easy_vqa_data.questions("test")[0]
    assert (first.question, first.answer, first.type) == (question.question, question.answer, question.type)


@pytest.fixture
def quiz(monkeypatch, items):
    """A benchmark of the seven questions, whose answers are right when they are not empty."""
    benchmark = Benchmark(lambda: items, lambda answer, item: float(bool(answer)), max_new_tokens=3)
    monkeypatch.setitem(evaluation.BENCHMARKS, "quiz", benchmark)
    return benchmark


@pytest.mark.parametrize(("limit", "chosen"), [(0, range(7)), (2, (0, 3)), (3, (0, 2, 4)), (7, range(7)), (100, range(7))])
def test_a_checkpoint_is_scored_on_evenly_spaced_questions(workspace, quiz, items, limit, chosen):
    output = workspace / "scores.json"
    table = evaluate_checkpoint(workspace / "model", ["quiz"], batch_size=2, limit=limit, output=output)
    written = json.loads(output.read_text())["quiz"]
    assert [answer["question"] for answer in written["answers"]] == [QUESTIONS[i] for i in chosen]
    points = [float(bool(answer["prediction"])) for answer in written["answers"]]
    assert [answer["points"] for answer in written["answers"]] == points
    assert written["score"]["total"] == pytest.approx(100 * sum(points) / len(points))
    assert f"all ({len(points)})" in table and f"{written['score']['total']:.2f}" in table and str(workspace / "model") in table


def test_several_benchmarks_give_several_tables(workspace, quiz, monkeypatch):
    monkeypatch.setitem(evaluation.BENCHMARKS, "other", quiz)
    table = evaluate_checkpoint(workspace / "model", ["quiz", "other"], limit=1)
    assert table.count("accuracy %") == 2 and "| other, accuracy %" in table


def test_a_text_only_model_is_no_model_for_pictures(quiz, tmp_path):
    make_language_model().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="quiz needs a model that takes pictures; .*text is text-only"):
        evaluate_checkpoint(tmp_path / "text", ["quiz"])


def test_mistakes_are_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="benchmarks: there is no 'vqa'; choose from easy-vqa"):
        evaluate_checkpoint("no/such/model", ["vqa"])
    (tmp_path / "scores.json").write_text("mine")
    with pytest.raises(ValueError, match="scores.json exists already"):
        evaluate_checkpoint("no/such/model", ["easy-vqa"], output=tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "mine"
