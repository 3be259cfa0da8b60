"""A LLaVA of one's own parts: nothing but the projector is new, and it goes through saving, chatting and stage 0."""

import copy
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import IMAGE_TOKEN, make_language_model, make_llava, make_records, make_tokenizer
from tiny.parts import VISION, make_clip, make_siglip, make_text_tokenizer, make_two_towers, write_parts
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    CLIPVisionModel,
    CohereConfig,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PhiConfig,
    ResNetConfig,
    ResNetModel,
    SiglipImageProcessorPil,
    SiglipModel,
    TorchAoConfig,
)

from evomoe.conversion.composing import compose, compose_folder, with_images
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.training.run import run

PICTURE = Image.linear_gradient("L").convert("RGB")


TOWERS = {"clip": make_clip, "siglip": make_siglip}


@pytest.fixture(params=TOWERS)
def tower(request):
    """A vision tower and its image processor, with a class token and without."""
    torch.manual_seed(1)
    return TOWERS[request.param]()


def ask(processor, model, images: int, text: str = "what color is the shape ?") -> dict[str, torch.Tensor]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    pictures = {"images": [[PICTURE] * images]} if images else {}
    return processor(text=[prompt], return_tensors="pt", **pictures).to(model.dtype)


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_projector_is_new_and_saving_changes_nothing(tower, tied, tmp_path):
    torch.manual_seed(0)
    text, (vision, image_processor) = make_language_model(tie_word_embeddings=tied), tower
    before = {id(m): {n: t.clone() for n, t in m.state_dict().items()} for m in (text, vision)}
    model, processor = compose(text, vision, make_tokenizer(), image_processor)
    own = model.state_dict()
    for old, prefix, kind in (
        (before[id(text)], "model.language_model.", "model."), (before[id(vision)], "model.vision_tower.", ""),
    ):  # fmt: skip
        for name, tensor in old.items():
            key = name if name.startswith("lm_head") else prefix + name.removeprefix(kind)
            assert torch.equal(own.pop(key), tensor), key
    assert set(own) == {f"model.multi_modal_projector.linear_{i}.{p}" for i in (1, 2) for p in ("weight", "bias")}
    assert own["model.multi_modal_projector.linear_1.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(p.is_meta for p in model.parameters()) and not any(b.is_meta for b in model.buffers())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied

    inputs = ask(processor, model, 2)
    assert inputs["input_ids"][0].tolist().count(IMAGE_TOKEN) == 8 and inputs["pixel_values"].shape == (2, 3, 16, 16)
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    again = AutoProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(ask(again, loaded, 2)), dict(inputs))
    torch.testing.assert_close(loaded.eval()(**ask(again, loaded, 2)).logits, logits, atol=1e-6, rtol=0)


def test_the_patches_reach_the_language_model_in_their_order(tower):
    """With a projector that is the identity, the image tokens' embeddings are the tower's patches, without a class token."""
    vision, image_processor = tower
    has_class_token = isinstance(vision, CLIPVisionModel)
    model, processor = compose(make_language_model(hidden_size=24, head_dim=6), vision, make_tokenizer(), image_processor)
    inputs = ask(processor, model, 1)
    hidden = vision.eval()(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = model.model.multi_modal_projector(hidden[-2][:, 1:] if has_class_token else hidden[-1])
    torch.testing.assert_close(torch.stack(model.model.get_image_features(inputs["pixel_values"]).pooler_output), expected)
    assert expected.shape[1] == model.config.image_seq_length == 4


@pytest.mark.parametrize("tied", [False, True])
def test_answers_to_text_are_the_language_model_s_token_by_token(tower, tied):
    torch.manual_seed(0)
    text = make_language_model(vocab_size=27, tie_word_embeddings=tied, initializer_range=0.5)
    tokenizer = make_text_tokenizer()
    chat = [{"role": "user", "content": "what color is the shape ?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    before, logits = text.generate(**ids, **options), text(**ids).logits
    assert len(set(before[0, ids["input_ids"].shape[1] :].tolist())) > 2
    model, processor = compose(text, tower[0], tokenizer, tower[1])
    inputs = ask(processor, model, 0)
    assert torch.equal(inputs["input_ids"], ids["input_ids"])
    assert torch.equal(model.generate(**inputs, **options), before)
    torch.testing.assert_close(model(**inputs).logits[..., :27], logits)


def test_an_image_token_is_added_with_an_embedding_and_the_other_special_tokens_stay(tower):
    tokenizer = make_text_tokenizer()
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    specials, size = set(tokenizer.all_special_tokens), len(tokenizer)
    model, processor = compose(make_language_model(vocab_size=size), tower[0], tokenizer, tower[1])
    assert model.config.image_token_id == size == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert model.get_input_embeddings().num_embeddings == model.config.text_config.vocab_size == size + 1
    assert processor.tokenizer("<image> red <tool>").input_ids[0] == size
    assert (
        specials <= set(processor.tokenizer.all_special_tokens)
        and processor.tokenizer.decode([size], skip_special_tokens=True) == ""
    )


@pytest.mark.parametrize("rows", [121, 160])
def test_an_image_token_that_the_tokenizer_has_is_used_and_spare_embeddings_stay(tower, rows):
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    model, processor = compose(make_language_model(vocab_size=rows), tower[0], tokenizer, tower[1])
    assert model.config.image_token_id == IMAGE_TOKEN and len(processor.tokenizer) == size
    assert model.get_input_embeddings().num_embeddings == rows


@pytest.mark.parametrize(("kind", "make"), [(CLIPModel, make_clip), (SiglipModel, make_siglip)])
def test_of_a_two_tower_model_the_vision_tower_is_taken(kind, make, tmp_path):
    both = make_two_towers(kind)
    model, processor = compose(make_language_model(), both, make_tokenizer(), make()[1])
    assert model.model.vision_tower is both.vision_model
    inputs = ask(processor, model, 1)
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, logits, atol=1e-6, rtol=0)


def test_the_seed_draws_the_projector_and_leaves_the_caller_s_random_numbers_alone(tower):
    weights = []
    for seed, outer in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(outer)
        expected_next = torch.rand(1, generator=torch.Generator().manual_seed(outer))
        text, vision = make_language_model(vocab_size=27), copy.deepcopy(tower[0])
        torch.manual_seed(outer)
        model, _ = compose(text, vision, make_text_tokenizer(), tower[1], seed)
        assert torch.equal(torch.rand(1), expected_next)
        weights.append(model.model.multi_modal_projector.linear_1.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_all_parts_take_on_the_language_model_s_precision(tower):
    model, processor = compose(make_language_model().to(torch.bfloat16), tower[0], make_tokenizer(), tower[1])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(**ask(processor, model, 1)).logits.isfinite().all()


def test_the_chat_template_takes_lists_of_parts_and_plain_strings(tower):
    _, processor = compose(make_language_model(), tower[0], make_text_tokenizer(), tower[1])
    image, text = {"type": "image"}, {"type": "text", "text": " red\n or <b>blue</b> ?"}

    def render(*messages, **options) -> str:
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": content} for i, content in enumerate(messages)]
        return processor.apply_chat_template(chat, tokenize=False, **options)

    assert render("red ?") == "<|user|>red ?"
    assert render([text]) == render(text["text"]) == "<|user|> red\n or <b>blue</b> ?"
    assert render([image, text, image]) == "<|user|><image> red\n or <b>blue</b> ?<image>"
    assert render([image, text], "blue", [text], add_generation_prompt=True) == (
        "<|user|><image> red\n or <b>blue</b> ?<|assistant|>blue</s><|user|> red\n or <b>blue</b> ?<|assistant|>"
    )


def test_the_template_goes_on_as_it_was():
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "{{ bos }}{% if messages[0]['role'] == 'system' %}S:{{ messages[0]['content'] }};{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{{ loop.index }}{{ m['content'] | trim }}{{ m.get('name', '') }};{% endfor %}"
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": " hi ", "name": "Ann"}]
    parts = [dict(message, content=[{"type": "text", "text": message["content"]}]) for message in chat]
    plain, _ = render_jinja_template([chat], chat_template=template, bos="^")
    for messages in (chat, parts):
        wrapped, _ = render_jinja_template([messages], chat_template=with_images(template), bos="^")
        assert wrapped == plain == ["^S:be kind;1hiAnn;"]


def test_stage_0_trains_the_projector_alone(tmp_path):
    text, vision = write_parts(tmp_path)
    summary = compose_folder(str(text), str(vision), tmp_path / "model")
    assert "untrained" in summary and "--stages 0 1 2 3" in summary
    (tmp_path / "images").mkdir()
    for i in range(3):
        PICTURE.save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "data.json").write_text(json.dumps(make_records(4)))
    recipe = Recipe(
        str(tmp_path / "model"), str(tmp_path / "data.json"), str(tmp_path / "run"), stages=(0,), image_root=str(tmp_path / "images"),
        stage0=StageOptions(learning_rate=1e-2, steps=2, batch_size=4, accumulation=1, train="projector"),
    )  # fmt: skip
    run(recipe, report=False)
    before = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    after = AutoModelForImageTextToText.from_pretrained(RunFolder(recipe.output).stage(0).model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}


def test_tied_embeddings_stay_tied_through_resizing_conversion_and_saving(tower, tmp_path):
    torch.manual_seed(0)
    text = make_language_model(vocab_size=27, tie_word_embeddings=True, initializer_range=0.5)
    model, processor = compose(text, tower[0], make_text_tokenizer(), tower[1])
    inputs = ask(processor, model, 1)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse")
    sparse = AutoModelForImageTextToText.from_pretrained(tmp_path / "sparse")
    sparse.save_pretrained(tmp_path / "again")
    for folder in (tmp_path / "sparse", tmp_path / "again"):
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")
        loaded = AutoModelForImageTextToText.from_pretrained(folder).eval()
        assert loaded.lm_head.weight is loaded.get_input_embeddings().weight and len(loaded.lm_head.weight) == 28
        torch.testing.assert_close(loaded(**inputs).logits, expected)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(tower):
    tokenizer = make_text_tokenizer()
    tokenizer.pad_token = None
    _, processor = compose(make_language_model(), tower[0], tokenizer, tower[1])
    assert processor.tokenizer.pad_token == "</s>"
    assert processor(text=["red", "red or blue"], padding=True, return_tensors="pt")["input_ids"].shape[0] == 2


def language_model_with_scaled_logits():
    model = make_language_model(CohereConfig, num_key_value_heads=4, initializer_range=0.5)
    assert model.config.logit_scale != 1
    return model


def language_model_with_a_biased_head():
    return make_language_model(PhiConfig, num_key_value_heads=4)


def language_model_of_another_shape():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=128, bos_token_id=1, eos_token_id=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (language_model_with_scaled_logits, "CohereForCausalLM computes its logits in a way that LLaVA's class does not"),
        (language_model_with_a_biased_head, "could not load these tensors again: lm_head.bias"),
        (language_model_of_another_shape, "GPT2LMHeadModel does not fit into LLaVA's class"),
    ],
)
def test_a_language_model_that_llava_s_class_would_change_is_refused(make, message, tower):
    with pytest.raises(ValueError, match=message):
        compose(make(), tower[0], make_tokenizer(), tower[1])


def test_a_tokenizer_without_a_chat_template_is_refused(tower):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template; set tokenizer.chat_template"):
        compose(make_language_model(), tower[0], tokenizer, tower[1])


@pytest.mark.parametrize("quantized", ["language model", "tower"])
def test_a_quantized_part_is_refused(quantized, tower, tmp_path):
    parts = {"language model": make_language_model(), "tower": tower[0]}
    parts[quantized].save_pretrained(tmp_path)
    kind = type(parts[quantized])
    parts[quantized] = kind.from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    with pytest.raises(ValueError, match=f"{kind.__name__} is quantized; load it in full precision"):
        compose(*parts.values(), make_tokenizer(), tower[1])


def test_a_tower_without_patches_is_refused():
    tower = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="ResNetModel is not a patch-based vision tower"):
        compose(make_language_model(), tower, make_tokenizer(), make_siglip()[1])


def test_a_tower_with_further_tokens_before_its_patches_is_refused():
    tower = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=4))
    with pytest.raises(ValueError, match="gives 9 features for 4 patches"):
        compose(make_language_model(), tower, make_tokenizer(), make_siglip()[1])


def test_an_image_processor_of_another_tower_is_refused():
    other = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    with pytest.raises(
        ValueError, match=r"pictures of \(24, 24\) pixels, which the vision tower \(image_size 16\) does not take"
    ):
        compose(make_language_model(), make_siglip()[0], make_tokenizer(), other)


def test_folders_that_hold_no_vision_tower_are_refused_and_nothing_is_written(tmp_path):
    text, vision = write_parts(tmp_path)
    with pytest.raises(ValueError, match="^vision: .*text: a model of type 'llama' has no vision tower"):
        compose_folder(str(text), str(text), tmp_path / "out")
    with pytest.raises(ValueError, match="^text: .*vision: Models of type 'clip' are neither"):
        compose_folder(str(vision), str(vision), tmp_path / "out")
    make_llava().save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match="^text: .*llava: this is a vision-language model already"):
        compose_folder(str(tmp_path / "llava"), str(vision), tmp_path / "out")
    with pytest.raises(ValueError, match="^vision: .*nothing: there is no such folder"):
        compose_folder(str(text), str(tmp_path / "nothing"), tmp_path / "out")
    (text / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="^text: .*text: its tokenizer has no chat template.*chat_template.jinja beside"):
        compose_folder(str(text), str(vision), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"text", "vision", "llava"}
    assert isinstance(LlamaConfig.from_pretrained(text), LlamaConfig)
