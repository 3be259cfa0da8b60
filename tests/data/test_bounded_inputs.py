"""Data of no measure, and templates that do not end: bounded, and said in one sentence."""

import json
import os
import time

import pytest
from spoken import answers, record

from evomoe.data import chat_template
from evomoe.data.chat_template import ChatTemplate
from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import BadRecordError, load_records
from evomoe.model.loading import load_config, load_processor
from evomoe.recipe.named_values import parse_named_values
from evomoe.recipe.recipe import Recipe
from evomoe.support import parse_json

GOOD = "{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "builds by doubling": "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "builds at once": "{{ 'x' * 9000000000 }}",
    "writes a lot": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
}
FAILING = {
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "divides by zero": "{{ 1 // 0 }}",
    "has a list of itself": "{% set x = [] %}{{ x.append(x) }}",
    "asks for what is not there": "{{ nothing.of.that }}",
    "is no template": "{% for %}",
    "calls what is no function": "{{ messages() }}",
    "formats wrongly": "{{ '%d' % 'x' }}",
    "indexes too far": "{{ messages[99].role }}",
}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 0.5)
    monkeypatch.setattr(chat_template, "_MEMORY", 300_000_000)


@pytest.mark.parametrize("name", [*ENDLESS, *FAILING])
@pytest.mark.parametrize("only", ["always", "for one record", "for a question"])
def test_a_template_that_does_not_end_is_one_sentence(make_processor, quick, name, only):
    part = (ENDLESS | FAILING)[name]
    if only == "always":
        with pytest.raises(
            ValueError, match=r"^the chat template (refuses|of LlavaProcessor cannot render) a question and its answer: ?\S"
        ):
            ChatTemplate(make_processor(template=part + GOOD))
        return
    if name == "is no template":
        pytest.skip("it is one always")
    when = "add_generation_prompt" if only == "for a question" else "messages[0].content == 'cursed'"
    processor = make_processor(template="{% if " + when + " %}" + part + "{% endif %}" + GOOD)
    start = time.monotonic()
    if only == "for a question":
        with pytest.raises(BadRecordError, match="^a question and its answer: the chat template refuses the conversation: "):
            ConversationDataset([record(("user", "hi"), ("assistant", "good"))], processor)
    else:
        cursed = record(("user", "cursed"), ("assistant", "good"), where="data, record 1")
        dataset = ConversationDataset([record(("user", "hi"), ("assistant", "good")), cursed], processor, on_bad_record="skip")
        dataset.check()
        assert len(dataset) == 1 and dataset.skipped[0].startswith("data, record 1: the chat template refuses the conversation: ")
    assert time.monotonic() - start < 20


def test_somebody_else_s_alarm_still_rings(make_processor):
    import signal

    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        ChatTemplate(make_processor())
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rung == [1]


@pytest.mark.parametrize("turns", [1000, 3000])
def test_long_conversations_take_time_in_proportion(make_processor, turns):
    def seconds(count: int) -> float:
        said = [turn for i in range(count // 2) for turn in (("user", f"what is {i}?"), ("assistant", "a blue rectangle"))]
        dataset = ConversationDataset([record(*said)], make_processor(), max_length=10**6)
        start = time.process_time()
        dataset.check()
        assert answers(dataset[0], dataset.processor.tokenizer).count("rectangle") == count // 2
        return time.process_time() - start

    assert seconds(turns) < 5 + 0.01 * turns


def test_an_answer_of_100_000_tokens_is_learned(make_processor):
    dataset = ConversationDataset(
        [record(("user", "x"), ("assistant", "blue shape " * 50_000))], make_processor(), max_length=10**6
    )
    start = time.process_time()
    assert (dataset[0]["labels"] >= 0).sum() > 90_000
    assert time.process_time() - start < 20


DEEP = ["[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000, "[" * 10_000]


@pytest.mark.parametrize("deep", DEEP, ids=["lists", "objects", "open"])
@pytest.mark.parametrize("file", ["data.json", "data.jsonl", "recipe.json", "config.json", "processor_config.json", "chat.json"])
def test_deep_json_is_one_sentence_wherever_it_is_read(workspace, deep, file):
    path = workspace / "model" / file
    path.write_text(deep)
    read = {
        "recipe.json": Recipe.load, "config.json": lambda path: load_config(path.parent),
        "processor_config.json": lambda path: load_processor(path.parent), "chat.json": lambda path: parse_json.read_json(path),
    }.get(file, load_records)  # fmt: skip
    with pytest.raises(ValueError) as caught:
        read(path)
    assert len(str(caught.value)) < 400 and "Traceback" not in str(caught.value)


def test_deep_values_on_the_command_line_are_one_sentence():
    with pytest.raises(ValueError, match="are nested too deeply"):
        parse_named_values(["deepspeed=" + "[" * 20_000])


@pytest.mark.parametrize("name", ["large.json", "recipe.json"])
def test_json_that_is_too_large_names_the_way_to_read_it(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.write(b"[")
        os.truncate(file.fileno(), 2 * 10**9)
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"has 2.0 GB; JSON of more than 1.5 GB is not read at once. Write JSON lines \(.jsonl\)"
    ):
        (Recipe.load if name == "recipe.json" else load_records)(tmp_path / name)
    assert time.monotonic() - start < 2


def test_json_lines_of_any_name_are_read_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(parse_json, "LARGEST", 100)
    line = '{"id": "%d", "messages": [{"role": "user", "content": "ä?"}, {"role": "assistant", "content": "b"}]}'
    lines = [line % number for number in range(6)]
    for name in ("data.json", "data.jsonl"):
        (tmp_path / name).write_bytes("\r\n\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
        records = load_records(tmp_path / name)
        assert [one.where for one in records] == [f"{name}, record {number} (id '{number}')" for number in range(6)]
        assert records[-1].where == f"{name}, record 5 (id '5')" and records[0].turns[0].text == "ä?"
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, "", "{broken"]))
    with pytest.raises(ValueError, match=r"^data.jsonl, line 8, column 2: broken JSON"):
        load_records(tmp_path / "data.jsonl")


def test_json_lines_of_one_line_may_be_called_json_and_other_values_are_said(tmp_path):
    path, row = tmp_path / "one.json", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row))
    assert len(load_records(path)) == 1
    path.write_text(json.dumps(row, indent=1) + "\n" + json.dumps(row, indent=1))
    with pytest.raises(ValueError, match="one.json, line .*Extra data: there is more than one value; write a list of records"):
        load_records(path)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="one.json: the file must hold a list of records, not an object"):
        load_records(path)
