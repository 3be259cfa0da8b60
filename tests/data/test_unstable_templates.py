"""Templates that render earlier turns otherwise than the last: the answers are found in the one text that the model sees."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import answers, record

from evomoe.data.chat_template import ChatTemplate
from evomoe.data.conversations import ConversationDataset, LabelMismatchError
from evomoe.data.records import BadRecordError, Record, Turn
from evomoe.data.thinking import not_thinking, without_thinking
from evomoe.support.errors import OptionError

_LOOP = "{% for m in messages %}{% if m.role == 'assistant' %}ANSWER{% else %}<|turn|>{{ m.role }}\n{{ m.content }}</s>\n{% endif %}{% endfor %}"
_ASKED = "{% if add_generation_prompt %}<|turn|>assistant\nOPEN{% endif %}"


def template(answer: str, opened: str = "", asked: str = _ASKED) -> str:
    return _LOOP.replace("ANSWER", answer) + asked.replace("OPEN", opened)


_SPLIT = (
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.reasoning_content or ('</think>' in m.content and m.content.split('</think>')[0].split('<think>')[-1].strip('\n')) or '' %}"
)
_THOUGHT = "<think>\n{{ thought }}\n</think>\n\n"
TEMPLATES = {
    # Thinking is shown in the last answer alone, where it may be empty; the question may close it.
    "drops thinking": template(
        _SPLIT + "<|turn|>assistant\n{% if loop.last %}" + _THOUGHT + "{% endif %}{{ text }}</s>\n",
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    ),
    # The question begins thinking, unless told otherwise.
    "opens thinking": template(
        _SPLIT + "<|turn|>assistant\n{% if loop.last or m.reasoning_content %}" + _THOUGHT + "{% endif %}{{ text }}</s>\n",
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
    ),
    # The question begins thinking, whatever is asked; whole conversations have none.
    "always opens thinking": template(_SPLIT + "<|turn|>assistant\n{{ text }}</s>\n", "<think>\n"),
    # Ends with one more special token, unless an answer is asked for.
    "ends otherwise": template(
        "<|turn|>assistant\n{{ m.content }}</s>\n",
        asked="{% if add_generation_prompt %}<|turn|>assistant\n{% else %}<end_of_utterance>{% endif %}",
    ),
    # Another special token after the last answer than after earlier ones, and a header between prompt and answer.
    "closes otherwise": template(
        _SPLIT
        + "<|turn|>assistant{% if thought and loop.last %}<row_1_col_1>{{ thought }}</s><|turn|>assistant{% endif %}<global-img>"
        "{{ text }}{% if loop.last %}<end_of_utterance>{% else %}</s>{% endif %}",
        asked="{% if add_generation_prompt %}<|turn|>assistant{% endif %}",
    ),
    # No header at all before an answer.
    "without header": template(" {{ m.content | trim }}</s>", asked=""),
    "marks the last turn": template("<|turn|>assistant{% if loop.last %} last{% endif %}\n{{ m.content }}</s>\n"),
}
ENDS = {
    "ends otherwise": ("</s>\n", "</s>\n<end_of_utterance>"),
    "closes otherwise": ("", "<end_of_utterance>"),
    "without header": ("</s>", "</s>"),
}
TALK = record(
    ("user", "assistant?"),
    ("assistant", "a"),
    ("user", "a"),
    ("assistant", "user a"),
    ("user", "and now?"),
    ("assistant", "now a"),
)
THOUGHT = Record(
    "data, record 0",
    (),
    (
        Turn("user", "what color?"),
        Turn("assistant", "<think>\nis it red?\n</think>\n\nblue"),
        Turn("user", "sure?"),
        Turn("assistant", "yes", thinking="I see it"),
    ),
)


OPTIONS = [(kind, {}) for kind in TEMPLATES] + [
    (kind, {"enable_thinking": False}) for kind, text in TEMPLATES.items() if "enable_thinking" in text
]


@pytest.mark.parametrize(
    ("kind", "options"), OPTIONS, ids=[f"{kind}{' without thinking' if given else ''}" for kind, given in OPTIONS]
)
@pytest.mark.parametrize(
    "talk", [TALK, replace(TALK, turns=TALK.turns[:2]), THOUGHT], ids=["three turns", "one turn", "thinking"]
)
def test_each_answer_is_learned_where_the_model_sees_it(make_processor, kind, talk, options):
    processor = make_processor(template=TEMPLATES[kind])
    if talk is THOUGHT and kind in ("always opens thinking", "without header", "ends otherwise", "marks the last turn"):
        with pytest.raises(
            BadRecordError, match="data, record 0: the chat template loses the reasoning of the last answer: 'I see it'"
        ):
            ChatTemplate(processor).render(talk)
        return
    chat = ChatTemplate(processor, options)
    rendered = chat.render(talk)
    as_messages = [
        {"role": turn.role, "content": turn.text} | ({"reasoning_content": turn.thinking} if turn.thinking else {})
        for turn in talk.turns
    ]
    assert rendered.text == processor.apply_chat_template(as_messages, tokenize=False, **options)
    earlier, last = ENDS.get(kind, ("</s>\n", "</s>\n"))
    spoken = [turn.text.rpartition("</think>")[2].strip() for turn in talk.turns if turn.role == "assistant"]
    taught = [rendered.text[start:end] for start, end in rendered.answers]
    for number, (words, shown) in enumerate(zip(spoken, taught, strict=True)):
        end = last if number + 1 == len(spoken) else earlier
        assert shown.endswith(words + end), (number, shown)
        if talk is not THOUGHT:
            assert shown.removesuffix(words + end).strip() in ("", "<think>\n\n</think>", "</think>", "<global-img>", "last"), (
                shown
            )
    asked = chat.question(replace(talk, turns=talk.turns[:-1]))
    if rendered.text.startswith(asked):
        assert asked + taught[-1] == rendered.text
    item = ConversationDataset([talk], processor, template_options=options)[0]
    assert answers(item, processor.tokenizer) == "".join(taught)


def test_thinking_of_the_last_answer_is_learned_and_what_is_dropped_is_not(make_processor):
    def taught(kind: str) -> list[str]:
        rendered = ChatTemplate(make_processor(template=TEMPLATES[kind])).render(THOUGHT)
        return [rendered.text[start:end] for start, end in rendered.answers]

    assert taught("drops thinking") == ["blue</s>\n", "<think>\nI see it\n</think>\n\nyes</s>\n"]
    assert taught("opens thinking") == ["blue</s>\n", "I see it\n</think>\n\nyes</s>\n"]
    assert taught("closes otherwise") == [
        "<global-img>blue",
        "<row_1_col_1>I see it</s><|turn|>assistant<global-img>yes<end_of_utterance>",
    ]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<\0"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(spoken=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), kind=st.sampled_from(sorted(TEMPLATES)))
def test_any_words_are_found_in_their_place(make_processor, spoken, kind):
    turns = [turn for asked, said in spoken for turn in (("user", asked), ("assistant", said))]
    rendered = ChatTemplate(make_processor(template=TEMPLATES[kind])).render(record(*turns))
    assert list(rendered.words) == [said.strip() for _, said in spoken]
    places = [rendered.text.index(words, start) for words, (start, _) in zip(rendered.words, rendered.answers, strict=True)]
    assert all(start <= at < end for at, (start, end) in zip(places, rendered.answers, strict=True))
    assert all(before[1] <= after[0] for before, after in zip(rendered.answers, rendered.answers[1:], strict=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "{{ m.content | upper | replace('PING', 'ping') | replace('PONG', 'pong') }}",
            "loses, repeats or rewrites the text of turn 1",
        ),
        ("{{ m.content }}{{ m.content }}", "loses, repeats or rewrites the text of turn 1"),
        ("{{ m.content }}{% if m.content|length != 8 %}?{% endif %}", "renders other text once its turns are marked"),
    ],
    ids=["rewrites", "repeats", "counts"],
)
def test_what_cannot_be_told_apart_is_refused(make_processor, change, message):
    processor = make_processor(template=template(f"<|turn|>assistant\n{change}</s>\n"))
    with pytest.raises((LabelMismatchError, ValueError), match=message):
        ConversationDataset([record(("user", "what?"), ("assistant", "a circle"))], processor)


@pytest.mark.parametrize(
    ("kind", "given", "used"),
    [
        ("drops thinking", {}, {}),
        ("opens thinking", {}, {"enable_thinking": False}),
        ("opens thinking", {"enable_thinking": True}, {"enable_thinking": True}),
        ("ends otherwise", {}, {}),
    ],
)
def test_an_answer_begins_inside_of_thinking_only_if_asked(make_processor, kind, given, used):
    assert not_thinking(make_processor(template=TEMPLATES[kind]), given) == used


def test_a_template_that_always_thinks_is_said(make_processor):
    with pytest.raises(
        ValueError, match="begins each answer inside of thinking; if you want that, ask for it: `template_options="
    ):
        not_thinking(make_processor(template=TEMPLATES["always opens thinking"]), {})


def test_an_argument_that_the_template_does_not_read_is_refused(make_processor):
    with pytest.raises(OptionError, match="reads no 'enable_thnking'; those that it reads: enable_thinking"):
        ChatTemplate(make_processor(template=TEMPLATES["opens thinking"]), {"enable_thnking": False})


@pytest.mark.parametrize(
    ("answer", "left"),
    [("<think>\nhm\n</think>\n\nyes", "\n\nyes"), ("hm</think>yes", "yes"), ("[THINK]hm[/THINK]yes", "yes"), ("yes", "yes")],
)
def test_an_answer_is_what_follows_thinking(answer, left):
    assert without_thinking(answer) == left


@pytest.mark.parametrize("said", [("<think>\nI see it\n</think>\n\nyes", ""), ("yes", "I see it")], ids=["inline", "field"])
@pytest.mark.parametrize("kind", ["drops thinking", "opens thinking", "closes otherwise", "always opens thinking"])
def test_the_last_answer_s_reasoning_is_not_lost_without_a_word(make_processor, kind, said):
    chat = ChatTemplate(make_processor(template=TEMPLATES[kind]))
    talk = Record("data, record 0", (), (Turn("user", "what?"), Turn("assistant", *said)))
    if kind == "always opens thinking":
        with pytest.raises(BadRecordError, match="the chat template loses the reasoning of the last answer: 'I see it'"):
            chat.render(talk)
    else:
        rendered = chat.render(talk)
        assert "I see it" in rendered.text[slice(*rendered.answers[0])]
