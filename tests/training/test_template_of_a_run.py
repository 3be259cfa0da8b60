"""What a run does with its model's chat template: its arguments, and the end that answers learn."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import make_recipe
from tiny.workspace import TEMPLATE
from transformers import AutoProcessor, GenerationConfig

from evomoe.data.records import Turn
from evomoe.evaluation import BENCHMARKS, Benchmark, Question
from evomoe.evaluation.benchmark import Findings
from evomoe.evaluation.evaluate import evaluate_checkpoint
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.evaluation.generation import Answerer, Asked, Prompts
from evomoe.model.loading import load_model, load_processor
from evomoe.recipe.recipe import Recipe
from evomoe.support.errors import OptionError
from evomoe.training.dry_run import describe
from evomoe.training.run import run

THINKS = TEMPLATE.replace(
    "<|assistant|>{% endif %}",
    "<|assistant|>{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{% endif %}",
)


def set_template(workspace: Path, template: str) -> None:
    processor = AutoProcessor.from_pretrained(workspace / "model")
    processor.chat_template = processor.tokenizer.chat_template = template
    processor.save_pretrained(workspace / "model")


@pytest.fixture
def quiz(monkeypatch) -> None:
    questions = [Question("one", "what color ?", None, "red", "color")]
    benchmark = Benchmark(
        "quiz", "One.", lambda folder: questions, lambda question, protocol: question.text,
        lambda asked, answers, protocol: Findings(0.0, "accuracy %", 0.0, "", 0, {}), max_new_tokens=3,
    )  # fmt: skip
    monkeypatch.setitem(BENCHMARKS, "quiz", benchmark)


@pytest.mark.parametrize(("end", "learned"), [("", "</s>"), ("\n", "</s>"), ("<|system|>", "<|system|>"), ("</s>", "</s>")])
def test_answers_end_and_generation_stops_there(workspace, end, learned):
    set_template(workspace, TEMPLATE.replace("</s>", end))
    GenerationConfig(eos_token_id=5).save_pretrained(workspace / "model")
    recipe = make_recipe(workspace, stages=(1,), steps=1)
    said = "puts no special token after an answer; '</s>' is put after the last one"
    assert (said in describe(recipe)) == (not end.strip())
    model = run(recipe)
    assert (said in (workspace / "run" / "report.md").read_text()) == (not end.strip())
    processor = load_processor(model)
    end_id = processor.tokenizer.convert_tokens_to_ids(learned)
    assert {5, end_id} <= {*json.loads((model / "generation_config.json").read_text())["eos_token_id"]}

    loaded = load_model(workspace / "model", "float32")  # which knows nothing of that end
    head = loaded.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
    ended = torch.nn.Linear(head.in_features, head.out_features)
    ended.weight.data.zero_()
    ended.bias.data.zero_()[end_id] = 1
    loaded.set_output_embeddings(ended)
    seen = []
    generate = loaded.generate
    vars(loaded)["generate"] = lambda **given: seen.append(generate(**given)) or seen[-1]
    asked = Prompts([Asked("one", (Turn("user", "what color ?"),))], processor)
    assert [*Answerer(loaded, 9).answer(asked, label=None)] == [{0: ""}]
    assert seen[0].shape[1] == asked[0].inputs["input_ids"].shape[1] + 1


def test_arguments_of_the_template_are_kept_in_recipe_and_result(workspace, quiz):
    set_template(workspace, THINKS)
    options = EvaluationOptions(output=str(workspace / "out"), workers=0, any_version=True)

    def asked(checkpoint: Path, **changes) -> tuple[str, dict]:
        evaluate_checkpoint(checkpoint, ["quiz"], replace(options, **changes))
        newest = max((workspace / "out" / "quiz").glob("result-*.json"), key=lambda file: file.stat().st_mtime_ns)
        result = json.loads(newest.read_text())
        return result["first_prompt"], result["template_options"]

    assert asked(workspace / "model") == ("<|user|>what color ?<|assistant|>", {"enable_thinking": False})
    thinking = ("<|user|>what color ?<|assistant|><think>", {"enable_thinking": True})
    assert asked(workspace / "model", template_options={"enable_thinking": True}) == thinking
    recipe = make_recipe(workspace, stages=(1,), steps=1, template_options={"enable_thinking": True})
    model = run(recipe)
    assert Recipe.load(workspace / "run").template_options == {"enable_thinking": True}
    assert asked(model) == thinking
    assert asked(model, template_options={})[1] == {"enable_thinking": False}


def test_a_wrong_argument_is_refused_before_anything_is_loaded(workspace):
    with pytest.raises(OptionError, match="template_options: the model's chat template reads no 'thinking'"):
        describe(make_recipe(workspace, template_options={"thinking": False}))
