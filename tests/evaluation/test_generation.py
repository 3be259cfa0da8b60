"""Questions in, answers out: order, padding, pictures, greedy answers that do not depend on the batch."""

import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image
from quiz_texts import TEXTS
from tiny import make_processor
from tokenizers import processors

from evomoe.data.images import Shape
from evomoe.evaluation.generation import Answerer, Prompts, ask, evaluate
from evomoe.evaluation.pictures import FilePicture
from evomoe.support.errors import OptionError


def answers_of(model, prompts: Prompts, max_new_tokens: int = 6, encode_once: bool = True, workers: int = 0) -> list[str]:
    answers: dict[int, str] = {}
    for some in Answerer(model, max_new_tokens, encode_once).answer(prompts, workers=workers):
        answers |= some
    return [answers[i] for i in range(len(prompts.asked))]


def test_prompts_are_batched_by_length_and_picture_and_padded_on_the_left(questions):
    questions.append(replace(questions[0], id="long", text="is there a blue circle ? " * 8))
    questions.append(replace(questions[0], id="text", picture=None))
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=3)
    batches = [prompts[number] for number in range(len(prompts))]
    assert [len(batch.index) for batch in batches] == [3, 3, 2, 1] and sorted(sum(prompts.chunks, [])) == list(range(9))
    pictures = [questions[i].picture.key[-5] for i in sum(prompts.chunks[:3], [])]
    assert pictures == ["0", "0", "0", "1", "1", "2", "2", "0"]  # the long one apart
    assert batches[2].index[-1] == 7 and batches[3].index == [8] and batches[3].pictures == []
    for batch in batches[:3]:
        inputs = batch.inputs
        assert inputs["attention_mask"][:, -1].all() and inputs["pixel_values"].shape == (len(inputs["input_ids"]), 3, 16, 16)
        mask = inputs["attention_mask"]
        assert torch.equal(mask, mask.sort(dim=1).values)  # zeros first
    assert any(not batch.inputs["attention_mask"].all() for batch in batches)  # otherwise nothing was tested


def test_a_prompt_is_a_picture_then_the_question_then_the_assistant_s_turn(questions):
    processor = make_processor()
    inputs = Prompts([ask(questions[0])], processor)[0].inputs
    words = [token for token in processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) if token != "<unk>"]  # spaces
    assert words == ["<|user|>", *["<image>"] * 4, "what", "color", "is", "the", "shape", "?", "<|assistant|>"]
    assert inputs["pixel_values"][0, 0].mean() > 0.9 > -0.9 > inputs["pixel_values"][0, 1].mean()  # red, without blue and green


def test_a_protocol_s_own_words_take_the_place_of_the_question(questions):
    prompts = Prompts([ask(questions[0], "is there a red circle ?")], make_processor())
    assert prompts.texts == ["<|user|><image>is there a red circle ?<|assistant|>"]


@pytest.mark.parametrize("batch_size", [1, 3, 128])
@pytest.mark.parametrize("encode_once", [True, False])
def test_answers_are_the_greedy_ones_one_by_one_in_the_order_of_the_questions(questions, model, batch_size, encode_once):
    processor = make_processor()
    expected = []
    for question in questions:
        inputs = Prompts([ask(question)], processor)[0].inputs
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    assert len(set(expected)) > 2
    assert (
        answers_of(model, Prompts([*map(ask, questions)], processor, batch_size=batch_size), encode_once=encode_once) == expected
    )


def test_workers_give_the_same_answers(questions, model):
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=2)
    expected = answers_of(model, prompts)
    assert answers_of(model, prompts, workers=2) == expected
    assert answers_of(model, pickle.loads(pickle.dumps(prompts))) == expected  # as workers get it that are not forked


def test_a_picture_is_decoded_and_encoded_once(questions, model, monkeypatch):
    opened = []
    picture = type(questions[0].picture)
    read = picture.open
    monkeypatch.setattr(picture, "open", lambda self: opened.append(self.key) or read(self))
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=2)
    answerer = Answerer(model, 2)
    assert len(list(answerer.answer(prompts))) == 4
    assert answerer.encoded == 3 and len(opened) == 3 == len(set(opened))


def test_kept_batches_are_prepared_once(questions, model, monkeypatch):
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=2, keep=True)
    first = answers_of(model, prompts)
    monkeypatch.setattr(prompts, "processor", None)
    assert prompts[0].inputs["input_ids"] is prompts[0].inputs["input_ids"]
    prompts[0].inputs.to(torch.bfloat16)  # changes its own mapping in place
    assert prompts[0].inputs["pixel_values"].dtype == torch.float32
    prompts.processor = make_processor()  # decodes the answers
    assert answers_of(model, prompts) == first


def test_prompts_are_narrowed_to_what_is_still_to_be_asked(questions):
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=2)
    prompts.narrow([5, 1, 3])
    assert sorted(sum(prompts.chunks, [])) == [1, 3, 5] and [len(chunk) for chunk in prompts.chunks] == [2, 1]


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_processes_share_the_batches(processes, questions):
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=2)
    whole, shares = prompts.chunks, []
    for process in range(processes):
        prompts.narrow(range(len(questions)), process, processes)
        shares.append(prompts.chunks)
    assert sorted(sum(shares, [])) == sorted(whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_answering_leaves_the_model_in_its_mode_and_ignores_its_own_generation_settings(questions, model):
    prompts = Prompts([*map(ask, questions)], make_processor(), batch_size=4)
    greedy = answers_of(model, prompts)
    model.train()
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    model.generation_config.repetition_penalty = 3.0
    model.generation_config.no_repeat_ngram_size = 1
    own = model.generation_config
    assert answers_of(model, prompts) == greedy and model.training and model.generation_config is own
    answering = Answerer(model, 2).answer(prompts)
    next(answering)
    answering.close()  # as an interruption does
    assert model.training and "get_image_features" not in vars(model.base_model)


def test_a_model_is_scored_by_the_benchmark_s_own_rule(questions, model, quiz):
    seen = []

    def score(asked, answers, protocol):
        seen.append((asked, answers, protocol))
        return quiz.score(asked, answers, protocol)

    prompts = Prompts([*map(ask, questions)], make_processor())
    result = evaluate(model, replace(quiz, score=score, max_new_tokens=4), questions, prompts)
    expected = dict(zip((question.id for question in questions), answers_of(model, prompts, 4), strict=True))
    assert seen == [(questions, expected, "official")] and result.questions == 7


@pytest.mark.parametrize("picture", [True, False])
def test_a_question_with_the_mark_of_a_picture_is_named(picture, questions):
    """The processor would look for a picture there."""
    asked = replace(questions[3], text="what does <image> mean ?", picture=questions[3].picture if picture else None)
    with pytest.raises(
        ValueError, match="^question 'q3': its text holds <image>, .*: 'what does <image> mean [?]'; put other words"
    ):
        ask(asked)
    assert ask(asked, "what is it ?").turns[0].text.endswith("what is it ?")


def test_a_picture_that_cannot_be_read_is_named(questions, tmp_path):
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="question 'q[036]': image .*0.png"):
        Prompts([*map(ask, questions)], make_processor())[0]
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match="question 'q[036]': image .*0.png does not exist"):
        Prompts([*map(ask, questions)], make_processor())[0]


@pytest.mark.timeout(60)
def test_a_batch_that_a_worker_cannot_hand_over_ends_the_answers(questions, model, monkeypatch):
    monkeypatch.setattr(Prompts, "__getitem__", lambda prompts, number: lambda: None)
    with pytest.raises(OptionError, match="workers: .* ended before its time"):
        answers_of(model, Prompts([*map(ask, questions)], make_processor()), workers=1)


def test_a_picture_that_a_worker_cannot_read_is_named_in_one_line(questions, model, tmp_path):
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError) as error:
        answers_of(model, Prompts([*map(ask, questions)], make_processor()), workers=1)
    assert "1.png" in str(error.value) and "\n" not in str(error.value)


def test_pictures_of_one_name_in_two_folders_are_two(questions, model, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "other" / "0.png")
    same = replace(questions[0], id="other", picture=FilePicture(str(tmp_path / "other" / "0.png")))
    prompts = Prompts([ask(questions[0]), ask(same)], make_processor())
    pixels = prompts[0].inputs["pixel_values"]
    answerer = Answerer(model, 2)
    list(answerer.answer(prompts))
    assert not torch.equal(pixels[0], pixels[1]) and answerer.encoded == 2


def test_a_template_that_writes_the_first_token_gets_no_second_one(questions):
    processor = make_processor()
    single = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", processor.tokenizer.bos_token_id)])
    processor.tokenizer.backend_tokenizer.post_processor = single
    assert (Prompts([ask(questions[0])], processor)[0].inputs["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1
    processor.chat_template = "<s>" + processor.chat_template
    assert (Prompts([ask(questions[0])], processor)[0].inputs["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1


def test_a_picture_that_padding_would_blow_up_is_refused(questions, tmp_path):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "0.png")
    with pytest.raises(
        ValueError, match="question 'q0': a picture of 20000 x 1 pixels would be padded to a square of 400,000,000"
    ):
        Prompts([ask(questions[0])], make_processor(), image_aspect="pad")[0]
    with pytest.raises(ValueError, match="image_aspect: there is no 'padd'"):
        Shape(make_processor(), "padd")


def test_a_processor_without_a_chat_template_is_refused(questions):
    processor = make_processor()
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Prompts([*map(ask, questions)], processor)


def test_too_little_memory_is_said_with_what_to_do(questions, model, monkeypatch):
    def generate(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", generate)
    with pytest.raises(ValueError, match="out of memory with 7 questions at once; .* smaller `batch_size`"):
        answers_of(model, Prompts([*map(ask, questions)], make_processor()))


def test_pictures_are_padded_to_a_square_where_they_would_be_cropped(questions, tmp_path):
    wide, processor = Image.new("RGB", (20, 10), "red"), make_processor()
    processor.image_processor.image_mean = [0.2, 0.4, 0.6]
    shape = Shape(processor, "pad")
    square, colour = shape.fit(wide), (51, 102, 153)
    assert square.size == (20, 20) == shape.size(20, 10) and square.getpixel((0, 4)) == colour
    assert square.getpixel((0, 5)) == (255, 0, 0) == square.getpixel((19, 14)) and square.getpixel((19, 15)) == colour
    tall = shape.fit(wide.rotate(90, expand=True))
    assert tall.getpixel((5, 0)) == (255, 0, 0) and tall.getpixel((4, 0)) == colour == tall.getpixel((15, 19))

    wide.save(tmp_path / "0.png")
    assert Shape(processor, "auto").aspect == "keep" and Shape(processor, "keep").size(20, 10) == (20, 10)
    kept = Prompts([ask(questions[0])], processor)[0].inputs["pixel_values"][0, 0]
    assert kept.min() > 1  # squeezed, red all over
    padded = Prompts([ask(questions[0])], processor, image_aspect="pad")[0].inputs["pixel_values"][0]
    assert padded[0, 8].mean() > 1 and padded[:, 0].abs().max() < 0.05  # the mean colour is 0 after normalisation
    processor.image_processor.do_center_crop = True
    assert Shape(processor, "auto").aspect == "pad" and Shape(processor, "keep").aspect == "keep"


def test_the_texts_of_the_quiz_differ_in_length():
    assert len({len(text) for text in TEXTS}) >= 5
