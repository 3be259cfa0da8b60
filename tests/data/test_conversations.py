import logging
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from transformers import LlavaProcessor

from evomoe.data import conversations
from evomoe.data.conversations import ConversationDataset, LabelMismatchError, messages_of
from evomoe.data.images import Shape, open_rgb
from evomoe.data.labels import IGNORED
from evomoe.data.records import BadRecordError, Record, Turn

END = "</s>\n"


def record(*turns: tuple[str, str], images=(), where: str = "data, record 0") -> Record:
    return Record(where, tuple(str(image) for image in images), tuple(Turn(*turn) for turn in turns))


@pytest.fixture
def cases(pictures) -> dict[str, Record]:
    red, wide, green = (pictures / name for name in ("red.png", "wide.png", "green.jpg"))
    return {
        "one image": record(("user", "<image>\nwhat color?"), ("assistant", "a blue one"), images=[red]),
        "several images": record(
            ("user", "<image>\n<image>\nand <image> here?"), ("assistant", "all"), images=[red, wide, green]
        ),
        "no image": record(("user", "hello"), ("assistant", "well  then, \n done")),
        "several turns": record(
            ("system", "be brief\n"),
            ("user", "<image>\nwhat is it?"),
            ("assistant", "a shape"),
            ("user", "\nand here, a shape? <image>"),
            ("assistant", "a shape"),
            ("user", "thanks"),
            images=[wide, red],
        ),
    }


def answers(item: dict, tokenizer) -> str:
    return tokenizer.decode(item["labels"][item["labels"] != IGNORED])


CASES = ("one image", "several images", "no image", "several turns")


@pytest.mark.parametrize("case", CASES)
def test_labels_are_the_answers(processor, cases, case):
    conversation = cases[case]
    item = ConversationDataset([conversation], processor)[0]
    spoken = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    assert answers(item, processor.tokenizer) == "".join(text + END for text in spoken)
    labelled = item["labels"] != IGNORED
    assert torch.equal(item["labels"][labelled], item["input_ids"][labelled])

    text = processor.apply_chat_template(messages_of(conversation.turns), tokenize=False)
    images = [[Image.open(path).convert("RGB") for path in conversation.images]] if conversation.images else None
    expected = processor(text=[text], images=images, return_tensors="pt")
    assert set(item) == {*expected, "labels"}
    for key, value in expected.items():
        per_token = key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        assert torch.equal(item[key], value[0] if per_token else value), key
    assert item["labels"].shape == item["attention_mask"].shape == item["input_ids"].shape


def test_messages_keep_the_order_of_the_marks():
    turns = (Turn("user", "<image>\nfirst <image> second\n<image>\n\n<image>"), Turn("assistant", "a\nb\n"))
    image = {"type": "image"}
    assert messages_of(turns) == [
        {
            "role": "user",
            "content": [image, {"type": "text", "text": "first "}, image, {"type": "text", "text": " second"}] + [image, image],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a\nb\n"}]},
    ]


@pytest.mark.parametrize(("adds_bos", "writes_bos"), [(True, True), (True, False), (False, True), (False, False)])
def test_first_token_is_never_doubled(make_processor, cases, adds_bos, writes_bos):
    processor = make_processor(adds_bos=adds_bos)
    if writes_bos:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    dataset = ConversationDataset([cases["one image"]], processor)
    ids = dataset[0]["input_ids"].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == (adds_bos or writes_bos)
    assert dataset.lengths() == [len(ids)]
    assert answers(dataset[0], processor.tokenizer) == "a blue one" + END


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PRINTED = PLAIN.replace("m['role'] + ': ' + m['content'] + eos_token", "m['role'] ~ ': ' ~ m['content'] ~ eos_token")


@pytest.mark.parametrize("template", [PLAIN, PRINTED], ids=["fails on lists", "prints lists"])
def test_template_for_plain_text_gets_plain_text(make_processor, cases, template):
    processor = make_processor(template=template)
    item = ConversationDataset([cases["several images"]], processor)[0]
    assert answers(item, processor.tokenizer) == "all</s>"
    assert "<image>\nand " in processor.tokenizer.decode(item["input_ids"])


def test_tokenizer_alone_takes_text(tokenizer, cases):
    tokenizer.chat_template = PLAIN
    dataset = ConversationDataset([cases["no image"], cases["one image"]], tokenizer)
    assert answers(dataset[0], tokenizer) == "well  then, \n done</s>"
    with pytest.raises(BadRecordError, match="record 0: it has images, but .* takes only text"):
        dataset[1]


def change(make_processor, old: str, new: str) -> LlavaProcessor:
    processor = make_processor()
    assert old in processor.chat_template
    processor.chat_template = processor.chat_template.replace(old, new)
    return processor


def test_template_that_strips_is_fine(make_processor):
    processor = change(make_processor, "part['text']", "part['text'] | trim")
    spaced = record(("user", "  what? "), ("assistant", " a shape \n"))
    assert answers(ConversationDataset([spaced], processor)[0], processor.tokenizer) == "a shape" + END


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "part['text']",
            "part['text'] | upper | replace('PONG', 'pong') | replace('PING', 'ping')",
            "loses or rewrites",
        ),
        ("for message in messages", "for message in messages[-2:]", r"text of turn 0 \(system\): 'be brief'"),
        (
            "for message in messages",
            "for message in messages if message['role'] != 'system'",
            r"loses or rewrites the text of turn 0 \(system\)",
        ),
        ("<image>", "", "has 0 <image> for 2 images"),
        (
            "<|turn|>{{ message['role'] }}",
            "<|turn|>{{ message['role'] }}{% if loop.last %} last{% endif %}",
            "renders the first 2 turns as ' last.*use a template that leaves earlier turns as they are",
        ),
        (
            "assistant\n{% endif %}",
            "assistant\nthink{% endif %}",
            "renders the first 2 turns as 'think' .* but as 'a shape",
        ),
    ],
    ids=["rewrites", "drops turns", "drops the system turn", "drops pictures", "changes history", "other prompt"],
)
def test_unsuitable_template_is_an_error_at_once(make_processor, cases, old, new, message):
    processor = change(make_processor, old, new)
    with pytest.raises(LabelMismatchError, match=message) as caught:
        ConversationDataset([cases["several turns"]], processor, on_bad_record="skip")
    assert str(caught.value).startswith("data, record 0: ")


def test_lost_turn_is_found_even_if_another_says_the_same(make_processor):
    processor = change(make_processor, "for message in messages", "for message in messages[:2] + messages[3:]")
    twice = record(("user", "again"), ("assistant", "one"), ("user", "again"), ("assistant", "two"))
    with pytest.raises(LabelMismatchError, match=r"loses or rewrites the text of turn 2 \(user\): 'again'"):
        ConversationDataset([twice], processor)


def test_answer_in_the_wrong_place_is_an_error(make_processor):
    # The words of the answer are in the text, but before the prompt that asks for it.
    template = (
        "{% for m in messages if m['role'] == 'user' %}Q{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
        "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'][0]['text'] }}{% endfor %}{% endfor %}"
        "{% if messages[-1]['role'] == 'assistant' %}A{% endif %}"
    )
    ask = record(("user", "ping"), ("assistant", "pong"), ("user", ""), ("assistant", "again"))
    with pytest.raises(LabelMismatchError, match="renders the first"):
        ConversationDataset([ask], make_processor(template=template))


def test_template_that_refuses_or_is_missing(make_processor, cases):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    processor = make_processor()
    processor.chat_template = refuses + processor.chat_template
    dataset = ConversationDataset([cases["no image"], cases["several turns"]], processor)
    with pytest.raises(BadRecordError, match="record 0: the chat template refuses the conversation: no system turn"):
        dataset[1]
    skipping = ConversationDataset([cases["several turns"], cases["no image"]], processor, on_bad_record="skip")
    assert torch.equal(skipping[0]["input_ids"], dataset[0]["input_ids"])
    with pytest.raises(BadRecordError, match="no system turn"):
        ConversationDataset([cases["several turns"]], processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template; set processor.chat_template"):
        ConversationDataset([cases["no image"]], processor)
    processor.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="cannot render a question and its answer"):
        ConversationDataset([cases["no image"]], processor)


def test_template_without_end_of_turn_is_warned_of(make_processor, cases, caplog):
    ConversationDataset([cases["no image"]], make_processor())
    assert not caplog.records
    ConversationDataset([cases["no image"]], make_processor(template=PLAIN.replace("+ eos_token", "+ '\n'")))
    assert "will not learn where to stop" in caplog.text


class RewritingProcessor(LlavaProcessor):
    def __call__(self, images=None, text=None, **options):
        return super().__call__(images=images, text=[one.replace("color", "shape") for one in text], **options)


class AppendingProcessor(LlavaProcessor):
    def __call__(self, images=None, text=None, **options):
        return super().__call__(images=images, text=[one + "\n" for one in text], **options)


@pytest.mark.parametrize("kind", [RewritingProcessor, AppendingProcessor])
@pytest.mark.parametrize("reports", [True, False])
def test_processor_that_changes_the_text_is_an_error(make_processor, cases, monkeypatch, kind, reports):
    monkeypatch.setattr(conversations, "_reports_replacements", lambda _: reports)
    dataset = ConversationDataset([cases["one image"]], make_processor(kind=kind))
    with pytest.raises(LabelMismatchError, match=r"data, record 0: token \d+ from the processor is .* \(id \d+\), but"):
        dataset[0]


def test_first_differing_token_is_shown(make_processor, cases):
    dataset = ConversationDataset([cases["one image"]], make_processor(kind=RewritingProcessor))
    right = ConversationDataset([cases["one image"]], make_processor())[0]["input_ids"]
    with pytest.raises(LabelMismatchError) as caught:
        dataset[0]
    tokenizer = dataset.processor.tokenizer
    position = len(tokenizer.tokenize("<|turn|>user\n")) + 16 + len(tokenizer.tokenize("what"))
    expected = f"token {position} from the processor is 'Ġshape' (id {tokenizer.convert_tokens_to_ids('Ġshape')}), but"
    assert expected in str(caught.value)
    assert f"(id {right[position]}) there" in str(caught.value)


def test_token_across_the_border_of_an_answer_is_an_error(make_processor):
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    processor = make_processor(template=template)
    assert len(processor.tokenizer.tokenize("abcd")) == 1
    start = ConversationDataset([record(("user", "ab"), ("assistant", "cd"))], processor)
    end = ConversationDataset([record(("user", "x "), ("assistant", "ab"), ("user", "cd"))], processor)
    with pytest.raises(LabelMismatchError, match="border of the answer 'cd' also holds 'ab' of another turn"):
        start[0]
    with pytest.raises(LabelMismatchError, match="border of the answer 'ab' also holds ' cd' of another turn"):
        end[0]
    space = ConversationDataset([record(("user", "ab "), ("assistant", "rectangle"))], processor)
    assert answers(space[0], processor.tokenizer).strip() == "rectangle"


def test_answer_outside_of_the_vocabulary_is_an_error(make_processor):
    processor = make_processor()
    unknown = processor.tokenizer.decode
    dataset = ConversationDataset([record(("user", "a"), ("assistant", "blue"))], processor)
    processor.tokenizer.decode = lambda ids, **options: unknown(ids, **options).replace("blue", "<unk>")
    with pytest.raises(LabelMismatchError, match="the labels read '<unk></s>.n' instead of the answer 'blue'"):
        dataset[0]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_labels_decode_to_exactly_the_answers(make_processor, data):
    processor = make_processor()
    words = st.text(st.characters(codec="utf-8", exclude_characters="<\0"), min_size=1, max_size=20).filter(str.strip)
    turns, spoken, marks = [], [], 0
    if data.draw(st.booleans()):
        turns.append(("system", data.draw(words)))
    for _ in range(data.draw(st.integers(1, 4))):
        here = data.draw(st.integers(0, 2))
        marks += here
        turns.append(("user", "<image>\n" * here + data.draw(words)))
        spoken.append(data.draw(words))
        turns.append(("assistant", spoken[-1]))
    conversation = Record("data, record 0", (Image.new("RGB", (20, 10)),) * marks, tuple(Turn(*turn) for turn in turns))
    dataset = ConversationDataset([conversation], processor)
    item = dataset[0]
    assert answers(item, processor.tokenizer) == "".join(text + END for text in spoken)
    assert (item["input_ids"] == processor.image_token_id).sum() == marks * 16
    assert dataset.lengths() == [len(item["input_ids"])]


def tolerance(processor) -> int:
    """The tokens by which the length of a picture may be off: Gemma 3 and Idefics 2 set it apart by white space."""
    return 1 if type(processor).__name__ in ("Gemma3Processor", "Idefics2Processor") else 0


def test_long_text_is_cut_and_counted(processor, cases):
    long = record(("user", "<image>\nwhat?"), ("assistant", "blue " * 50), images=cases["one image"].images)
    whole = ConversationDataset([long, cases["no image"]], processor)
    size = len(whole[0]["input_ids"])
    dataset = ConversationDataset([long, cases["no image"]], processor, max_length=size - 30)
    item = dataset[0]
    for key in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(item[key], whole[0][key][: size - 30])
    assert torch.equal(item["pixel_values"], whole[0]["pixel_values"])
    assert whole.cut == 0 and dataset.cut == 1
    assert ConversationDataset([long], processor, max_length=whole.lengths()[0]).cut == 0
    assert dataset.lengths()[0] == size - 30
    assert abs(whole.lengths()[0] - size) <= tolerance(processor)


def test_cut_through_a_picture_or_before_the_answer_is_an_error(make_processor, pictures):
    image = pictures / "red.png"
    late_image = record(("user", "hi"), ("assistant", "ho"), ("user", "<image>"), ("assistant", "it"), images=[image])
    with pytest.raises(BadRecordError, match=r"it has \d+ tokens, and cutting it at max_length 20 would cut through"):
        ConversationDataset([late_image], make_processor(), max_length=20)[0]
    with pytest.raises(BadRecordError, match="max_length 20 would leave no answer to learn"):
        ConversationDataset([record(("user", "why " * 40), ("assistant", "so"))], make_processor(), max_length=20)[0]


def test_check_finds_before_training_what_training_would_refuse(processor, cases):
    image, filler = cases["one image"].images, "why " * 60
    bad = {
        1: record(("user", filler), ("assistant", "so"), where="d, record 1"),
        3: record(
            ("user", "a"), ("assistant", "b"), ("user", filler + "<image>"), ("assistant", "c"), images=image, where="d, record 3"
        ),
    }
    good = {
        0: cases["one image"],
        2: record(("user", "<image>what?"), ("assistant", "blue " * 60), images=image, where="d, record 2"),
    }
    records = [(bad | good)[number] for number in range(4)]
    max_length = len(ConversationDataset([good[0]], processor)[0]["input_ids"]) + 30
    dataset = ConversationDataset(records, processor, max_length=max_length)
    for number in bad:
        with pytest.raises(BadRecordError, match="cutting it at max_length"):
            dataset[number]
    with pytest.raises(BadRecordError, match="2 of 4 records are bad") as caught:
        dataset.check()
    assert "d, record 1: it has" in str(caught.value) and "would leave no answer to learn" in str(caught.value)
    assert "d, record 3: it has" in str(caught.value) and "would cut through its pictures" in str(caught.value)
    skipping = ConversationDataset(records, processor, max_length=max_length, on_bad_record="skip")
    skipping.check()
    assert len(skipping) == len(skipping.lengths()) == 2 and skipping.cut == 1
    assert [message.split(":")[0] for message in skipping.skipped] == ["d, record 1", "d, record 3"]
    assert torch.equal(skipping[1]["input_ids"], dataset[2]["input_ids"])


ONE_PICTURE = (("user", "hi <image> there, " + "why " * 9), ("assistant", "ho"))
TWO_PICTURES = (("user", "hi <image> there"), ("assistant", "ho"), ("user", "<image>"), ("assistant", "it"))


@pytest.mark.parametrize(("turns", "expected"), [
    (ONE_PICTURE, {"good", "cut through its pictures", "leave no answer to learn"}),
    (TWO_PICTURES, {"good", "cut through its pictures"}),
])  # fmt: skip
def test_check_agrees_with_the_cut_token_by_token(make_processor, cases, turns, expected):
    """For every max_length: what `check` lets pass, training can use, and nothing else."""
    pictures = sum(text.count("<image>") for _, text in turns)
    conversation = record(*turns, images=cases["one image"].images * pictures)
    whole = len(ConversationDataset([conversation], make_processor())[0]["input_ids"])
    verdicts = []
    for max_length in range(1, whole + 2):
        dataset = ConversationDataset([conversation], make_processor(), max_length=max_length)
        verdict = []
        for attempt in (dataset.check, lambda dataset=dataset: dataset[0]):
            try:
                attempt()
                verdict.append("good")
            except BadRecordError as error:
                verdict.append(next(phrase for phrase in expected if phrase in str(error)))
        verdicts.append(tuple(verdict))
    assert all(checked == used for checked, used in verdicts)
    assert {checked for checked, _ in verdicts} == expected


def test_check_finds_labels_that_cannot_be_placed(make_processor):
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    fine = record(("user", "ab "), ("assistant", "rectangle"))
    joined = record(("user", "ab"), ("assistant", "cd"), where="d, record 1")
    dataset = ConversationDataset([fine, joined], make_processor(template=template))
    with pytest.raises(BadRecordError, match="d, record 1: a token at the border of the answer 'cd' also holds 'ab'"):
        dataset.check()


@pytest.fixture
def broken(pictures):
    """A picture that only decoding finds out about."""
    content = bytearray((pictures / "red.png").read_bytes())
    content[len(content) // 2] ^= 255
    (pictures / "broken.png").write_bytes(content)
    images = [pictures / "broken.png"]
    return record(("user", "<image>"), ("assistant", "x"), images=images, where="train.json, record 7")


def test_undecodable_picture_stops_or_is_replaced(make_processor, cases, broken, caplog):
    good = [cases["one image"], cases["no image"]]
    with pytest.raises(BadRecordError, match="train.json, record 7: image .*broken.png cannot be decoded"):
        ConversationDataset([good[0], broken, good[1]], make_processor())[1]
    dataset = ConversationDataset([good[0], good[1], broken], make_processor(), on_bad_record="skip")
    for _ in range(3):
        assert torch.equal(dataset[2]["input_ids"], dataset[0]["input_ids"])
    assert caplog.text.count("train.json, record 7") == 1
    with pytest.raises(BadRecordError, match="there is no good record"):
        ConversationDataset([broken, broken], make_processor(), on_bad_record="skip")[0]


class RefusingProcessor(LlavaProcessor):
    def __call__(self, *args, **options):
        raise ValueError("this one not")


def test_processor_error_names_the_record(make_processor, cases):
    dataset = ConversationDataset([cases["no image"]], make_processor(kind=RefusingProcessor))
    with pytest.raises(BadRecordError, match="data, record 0: RefusingProcessor cannot process it: this one not"):
        dataset[0]


def test_options_are_checked(make_processor, cases):
    one = [cases["no image"]]
    with pytest.raises(ValueError, match="^on_bad_record: there is no .drop."):
        ConversationDataset(one, make_processor(), on_bad_record="drop")
    with pytest.raises(ValueError, match="max_length: 0 must be at least 1"):
        ConversationDataset(one, make_processor(), max_length=0)
    with pytest.raises(ValueError, match="records: there are none"):
        ConversationDataset([], make_processor())
    with pytest.raises(IndexError):
        ConversationDataset(one, make_processor())[1]


def test_workers_decode(make_processor, cases, monkeypatch):
    dataset = ConversationDataset([cases["one image"]] * 3, make_processor())
    seen = []
    monkeypatch.setattr(conversations, "open_rgb", lambda path: seen.append(os.getpid()) or open_rgb(path))
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert seen == [] and len(loaded) == 3
    assert torch.equal(loaded[0]["pixel_values"], dataset[0]["pixel_values"])


def test_items_can_be_kept(processor, cases, monkeypatch):
    plain, dataset = (ConversationDataset(list(cases.values()), processor, keep=keep) for keep in (False, True))
    first = dataset[1]
    first.pop("labels")  # what a caller does to an item is its own affair
    monkeypatch.setattr(dataset, "_encode", lambda record: pytest.fail("it was made a second time"))
    for number in (1, 1 - len(dataset)):
        again = dataset[number]
        assert again.keys() == plain[1].keys() and all(torch.equal(again[name], value) for name, value in plain[1].items())
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_lengths_are_right_and_decode_nothing(processor, cases, monkeypatch):
    dataset = ConversationDataset(list(cases.values()), processor)
    expected = [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
    monkeypatch.setattr(conversations, "open_rgb", lambda _: pytest.fail("a picture was decoded"))
    for length, real, conversation in zip(dataset.lengths(), expected, dataset.records, strict=True):
        assert abs(length - real) <= tolerance(processor) * len(conversation.images)


def test_check_and_lengths_at_a_picture_that_has_gone(make_processor, cases, pictures):
    (pictures / "wide.png").unlink()
    records = [cases["one image"], cases["several images"]]
    with pytest.raises(BadRecordError, match="data, record 0: image .*wide.png does not exist"):
        ConversationDataset(records, make_processor()).check()
    dataset = ConversationDataset(records, make_processor(), on_bad_record="skip")
    assert dataset.lengths() == [len(dataset[0]["input_ids"]), 1]


def test_nothing_is_logged_for_good_records(make_processor, cases, caplog):
    with caplog.at_level(logging.WARNING, logger="evomoe"):
        assert len(list(ConversationDataset(list(cases.values()), make_processor()))) == 4
    assert not [entry for entry in caplog.records if entry.name.startswith("evomoe")]


def test_pictures_are_padded_as_in_evaluation_where_they_would_be_cropped(processor, cases, tmp_path):
    wide = cases["several images"].images[1]
    Shape(processor, "pad").fit(open_rgb(wide)).save(tmp_path / "padded.png")

    def dataset(image, aspect) -> ConversationDataset:
        asked = record(("user", "<image>\nwhat color?"), ("assistant", "a blue one"), images=[image])
        return ConversationDataset([asked], processor, image_aspect=aspect)

    padded, expected = dataset(wide, "pad"), dataset(tmp_path / "padded.png", "keep")
    item = padded[0]
    assert item.keys() == expected[0].keys() and all(torch.equal(item[name], value) for name, value in expected[0].items())
    assert padded.lengths() == expected.lengths()
    kept, automatic = dataset(wide, "keep")[0]["pixel_values"], dataset(wide, "auto")[0]["pixel_values"]
    assert kept.shape != item["pixel_values"].shape or not torch.equal(kept, item["pixel_values"])
    assert torch.equal(automatic, kept)  # none of these processors crops
