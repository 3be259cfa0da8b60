"""Talking with a model: what is streamed, what is remembered, and what only costs a sentence."""

import io
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from evomoe import cli, upcycle
from evomoe.analysis.token_routing import routing_of_tokens
from evomoe.model.loading import load_model
from evomoe.serving.chat import Chat
from evomoe.serving.conversation import Conversation, ConversationError
from evomoe.serving.sampling import Sampling
from evomoe.support.errors import OptionError

SHORT = Sampling(max_new_tokens=6)


@pytest.fixture
def sparse(workspace):
    model = upcycle(load_model(workspace / "model"), expert_init="noise", init_options={"std": 0.5})
    model.generation_config.eos_token_id = None
    torch.manual_seed(3)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    return Conversation(model.eval(), AutoProcessor.from_pretrained(workspace / "model"))


@pytest.fixture
def picture(workspace) -> str:
    return str(next((workspace / "images").glob("*.png")))


def talk(*conversations: Conversation, lines: list[str], sampling: Sampling = SHORT) -> str:
    said: list[str] = []
    names = ["model", "other"]
    Chat(dict(zip(names, conversations, strict=False)), sampling, said.append).run(lines)
    return "".join(said)


def reference(conversation: Conversation, text: str, pictures=()) -> str:
    """The greedy answer by transformers' own means."""
    options = {"images": [[Image.open(file).convert("RGB") for file in pictures]]} if pictures else {}
    inputs = conversation.processor(text=[text], return_tensors="pt", **options)
    with torch.no_grad():
        tokens = conversation.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return conversation.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_are_those_of_generate_and_the_conversation_is_remembered(sparse, picture):
    template = sparse.processor.apply_chat_template
    first = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]
    pieces: list[str] = []
    sparse.add_picture(picture)
    answer = sparse.say("what is this?", SHORT, pieces.append)
    assert answer == reference(sparse, template(first, add_generation_prompt=True, tokenize=False), [picture])
    assert "".join(pieces).strip() == answer and len(answer) > 3
    second = [
        *first,
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        {"role": "user", "content": [{"type": "text", "text": "and the color?"}]},
    ]
    expected = reference(sparse, template(second, add_generation_prompt=True, tokenize=False), [picture])
    assert sparse.say("and the color?", SHORT) == expected
    assert [turn.role for turn in sparse.said.turns] == ["user", "assistant"] * 2 and sparse.said.pictures == (picture,)


def test_the_load_is_that_of_the_last_question_and_answer(sparse, picture):
    text = talk(sparse, lines=["/experts", f"/image {picture}", "what?", "/experts"])
    assert text.startswith("There is no answer yet.\n")
    load = sparse.said.last.load
    assert int(load.tokens_M[1]) == 4 and int(load.tokens_M[0]) > 8  # a picture of four tokens; the words and the answer
    assert load.counts.sum().item() == load.tokens_M.sum().item() * len(load.layers)
    assert "| 4 image tokens   |" in text and "expert 4" in text
    load = replace(load, counts=load.counts.clone())
    load.counts[:, :, 2] = 0
    load.counts[:1, :, 1] = 0
    load.counts[:, :, [0, 3]] = 1
    load.counts[1:, :, 1] = 1
    assert load.sentence() == "Expert 2 slept in 1 of 2 layers; expert 3 slept in 2 of 2 layers."
    load.counts[:] = 1
    assert load.sentence() == "Every expert had a token in every layer."


def test_what_cannot_be_done_is_a_sentence_and_the_conversation_goes_on(sparse, picture, workspace):
    (workspace / "broken.png").write_bytes(b"no picture")
    lines = [
        "/image", f"/image {workspace / 'none.png'}", f"/image {workspace / 'broken.png'}", "/image a\0.png", "/images x", "look at <image>", "",
        "hello", "/quit", "never read",
    ]  # fmt: skip
    said = talk(sparse, lines=lines).split("\n")
    for line, words in zip(
        said,
        ["Name a picture", "none.png", "broken.png", r"'a\x00.png': ", "There is no /images", "stands for a picture"],
        strict=False,
    ):
        assert words in line
    assert "\n".join(said[6:]).strip() == sparse.said.turns[1].text and len(sparse.said.turns) == 2  # the answer to "hello" alone
    assert talk(sparse, lines=["/reset"]) == "The conversation is empty.\n" and not sparse.said.turns


def test_a_full_context_is_a_sentence_and_an_answer_ends_where_it_is_full(sparse):
    sparse.model.config.text_config.max_position_embeddings = 40
    long = "what color is the circle " * 12
    before = sparse.said
    with pytest.raises(ConversationError, match="the model reads 40 at most; begin a new one"):
        sparse.say(long, SHORT)
    assert sparse.said is before
    sparse.model.generation_config.eos_token_id = None
    sparse.say("what color is the circle", Sampling(max_new_tokens=500))
    length = len(sparse.processor(text=sparse._template.text(_record(sparse)))["input_ids"][0])
    assert length <= 45


def _record(conversation):
    from evomoe.data.records import Record

    return Record("all", conversation.said.pictures, conversation.said.turns)


def test_a_text_only_model_says_that_it_cannot_look(sparse, picture):
    blind = Conversation(sparse.model, sparse.processor.tokenizer)
    blind.processor.chat_template = sparse.processor.chat_template
    with pytest.raises(ConversationError, match="takes words alone"):
        blind.add_picture(picture)
    assert talk(blind, lines=["what is this?"]).strip() and blind.said.last.load  # a tokenizer's inputs move in another way
    # Shown to both or to neither.
    text = talk(sparse, blind, lines=[f"/image {picture}"])
    assert "takes words alone" in text and not sparse.said.waiting and not blind.said.waiting


def test_two_models_answer_the_same_question(sparse, workspace):
    dense = Conversation(load_model(workspace / "model").eval(), sparse.processor)
    text = talk(sparse, dense, lines=["what is this?", "/experts"])
    assert text.startswith("[model] ") and "\n[other] " in text and "This model is dense" in text
    assert sparse.said.turns[0] == dense.said.turns[0] and dense.said.last.load is None
    dense.model.config.text_config.max_position_embeddings = 10
    before = sparse.said, dense.said
    assert "at most" in talk(sparse, dense, lines=["and now?"])
    assert (sparse.said, dense.said) == before  # asked of both or of neither


def test_sampling_follows_the_seed(sparse):
    said = {}
    for seed in (0, 0, 1):
        sparse.said = type(sparse.said)()
        said.setdefault(seed, []).append(sparse.say("what is this?", Sampling(temperature=2.0, seed=seed, max_new_tokens=12)))
    assert said[0][0] == said[0][1] != said[1][0]


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "temperature": [-1.0, 1e-300, 1e300, math.nan, math.inf], "top_p": [0.0, 1.1, math.nan], "top_k": [-1, 10**30],
        "repetition_penalty": [0.0, 1e-300, 1e300, math.nan, math.inf], "max_new_tokens": [0, 10**30], "seed": [-1, 2**70],
    }.items(),
)  # fmt: skip
def test_what_no_score_can_stand_is_refused(name, values):
    for value in values:
        with pytest.raises(OptionError, match=f"^{name}: "):
            Sampling(**{name: value}).check()
    Sampling(temperature=0.01, repetition_penalty=1.3, top_k=50, seed=2**32 - 1).check()


def test_an_answer_that_is_ended_leaves_the_conversation_as_it_was(sparse, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sparse.model, "generate", interrupted)
    assert "was ended" in talk(sparse, lines=["what is this?"]) and not sparse.said.turns


def test_the_command_writes_the_answer_alone(workspace, picture, capsys, monkeypatch):
    model = str(workspace / "model")
    assert cli.main(["chat", model, "--prompt", "what is this?", "--image", picture, "--max-new-tokens", "6"]) == 0
    out = capsys.readouterr().out
    conversation = Conversation.load_from(model)
    conversation.add_picture(picture)
    assert out.strip() == conversation.say("what is this?", SHORT)
    assert cli.main(["chat", model, "--prompt", "x", "--image", str(workspace / "none.png")]) == 1
    assert "--image: image" in capsys.readouterr().err
    assert cli.main(["chat", model, "--against", model]) == 1
    assert "--against: it is the same model" in capsys.readouterr().err
    upcycle(load_model(model)).save_pretrained(workspace / "sparse")
    AutoProcessor.from_pretrained(model).save_pretrained(workspace / "sparse")
    lines = iter(["what is this?"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    assert cli.main(["chat", model, "--against", str(workspace / "sparse"), "--max-new-tokens", "6"]) == 0
    out = capsys.readouterr().out
    assert "[model] " in out and "[sparse] " in out


def test_the_same_folder_under_another_name_is_no_other_model(workspace, capsys):
    assert cli.main(["chat", str(workspace / "model"), "--against", f"{workspace}/images/../model"]) == 1
    assert "--against: it is the same model" in capsys.readouterr().err


def test_a_wrong_name_waits_for_no_model(workspace, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a processor was looked for")

    monkeypatch.setattr("evomoe.serving.conversation.load_processor", never)
    (workspace / "empty").mkdir()
    empty, model = str(workspace / "empty"), str(workspace / "model")
    assert cli.main(["chat", model, "--against", empty]) == 1 and "--against: " in capsys.readouterr().err
    assert cli.main(["chat", empty]) == 1
    assert cli.main(["look", empty, "--prompt", "what?", "--out", str(workspace / "page.html")]) == 1


def test_bytes_that_are_no_text_and_letters_that_the_terminal_lacks_end_no_conversation(workspace, monkeypatch, capsys):
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n/image \xff.png\n/\xc3\xa9\n"), encoding="utf-8", errors="strict")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr("sys.stdout", shown)
    assert cli.main(["chat", str(workspace / "model")]) == 0, capsys.readouterr().err
    said = shown.buffer.getvalue().decode()
    assert "half a character" in said and ".png does not exist" in said and r"There is no /\xe9" in said


def test_each_token_of_the_answer_is_told_with_its_expert_as_it_is_routed(sparse, picture):
    for block in sparse.model.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    sparse.add_picture(picture)
    told: list[tuple[str, int]] = []
    sparse.say("what is this?", Sampling(max_new_tokens=12), on_token=lambda word, expert: told.append((word, expert)))
    last = sparse.said.last
    length = last.inputs["input_ids"].shape[1]
    assert [word for word, _ in told] == [
        sparse.decode([token]) for token in last.ids_T[length:-1].tolist()
    ]  # the last is not routed
    routing = routing_of_tokens(sparse.model, last.inputs, last.ids_T)
    assert [expert for _, expert in told] == routing.chosen_LTK[:, length:-1, 0].mode(0).values.tolist()
    assert len({expert for _, expert in told}) > 1


@pytest.mark.parametrize(
    "own", [{"num_beams": 3}, {"guidance_scale": "x"}, {"bad_words_ids": [["x"]]}, {"stop_strings": ["e"]}], ids=str
)
def test_what_a_model_s_folder_says_of_generation_changes_no_answer(sparse, picture, own):
    def answer() -> str:
        conversation = Conversation(sparse.model, sparse.processor)
        conversation.add_picture(picture)
        return conversation.say("what color is the shape ?", Sampling(max_new_tokens=4))

    plain, settings = answer(), sparse.model.generation_config
    for name, value in own.items():
        setattr(settings, name, value)
    assert answer() == plain and sparse.model.generation_config is settings


@pytest.mark.parametrize("typed", ["{}", "'{}'", '"{}"', "{escaped}"])
def test_a_path_with_blanks_may_be_typed_as_terminals_write_it(sparse, picture, tmp_path, typed):
    path = tmp_path / "my  table's.png"
    path.write_bytes(Path(picture).read_bytes())
    said = shlex.quote(str(path)) if typed == "'{}'" else typed.format(path, escaped=re.sub(r"(\W)", r"\\\1", str(path)))
    assert "the next question is about it" in talk(sparse, lines=[f"/image {said}"])
    assert "does not exist" in talk(sparse, lines=["/image 'none.png"])
