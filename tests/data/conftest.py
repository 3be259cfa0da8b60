import json
from pathlib import Path

import pytest
from PIL import Image
from spoken import record
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SiglipImageProcessorPil,
)

from evomoe.data.records import Record

SPECIAL_TOKENS = [
    *("<pad>", "<s>", "</s>", "<|turn|>", "<image>", "<|image_pad|>", "<|video_pad|>", "<boi>", "<eoi>", "<soft>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]

CORPUS = ["what color is the shape?", "a blue rectangle", "user\nassistant\nsystem\n", "\n\n\n\n", "abcd abcd"] * 20

CHAT_TEMPLATE = """{% for message in messages %}<|turn|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE_TOKEN{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}</s>
{% endfor %}{% if add_generation_prompt %}<|turn|>assistant
{% endif %}"""


class Qwen2VLProcessorWithoutVideo(Qwen2VLProcessor):
    """The real processor less its video part, which needs torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def make_tokenizer(adds_bos: bool = False, **options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **options)


def make_llava(template: str = CHAT_TEMPLATE, adds_bos: bool = False, kind: type = LlavaProcessor) -> LlavaProcessor:
    return kind(
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        make_tokenizer(adds_bos),
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template.replace("IMAGE_TOKEN", "<image>"),
    )


def make_qwen2_vl() -> Qwen2VLProcessor:
    return Qwen2VLProcessorWithoutVideo(
        Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16),
        make_tokenizer(),
        chat_template=CHAT_TEMPLATE.replace("IMAGE_TOKEN", "<|image_pad|>"),
    )


def make_idefics3() -> Idefics3Processor:
    return Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        make_tokenizer(),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE_TOKEN", "<image>"),
    )


def make_idefics2() -> Idefics2Processor:
    """A processor that does not report its replacements."""
    return Idefics2Processor(
        Idefics2ImageProcessorPil(size={"longest_edge": 64, "shortest_edge": 32}, do_image_splitting=False),
        make_tokenizer(),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE.replace("IMAGE_TOKEN", "<image>"),
    )


def make_gemma3() -> Gemma3Processor:
    """A processor whose line breaks around a picture melt into those of the text."""
    extra = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        make_tokenizer(extra_special_tokens=extra),
        chat_template=CHAT_TEMPLATE.replace("IMAGE_TOKEN", "<boi>"),
        image_seq_length=4,
    )


MAKERS = {
    "llava": make_llava,
    "qwen2_vl": make_qwen2_vl,
    "idefics3": make_idefics3,
    "idefics2": make_idefics2,
    "gemma3": make_gemma3,
}


@pytest.fixture(params=MAKERS)
def processor(request):
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def make_processor():
    """Makes a processor by the name of its family."""
    return lambda family="llava", **options: MAKERS[family](**options)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with red.png (64 x 48), wide.png (120 x 40) and green.jpg (48 x 48)."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.effect_noise((64, 48), 90).convert("RGB").save(folder / "red.png")
    Image.effect_noise((120, 40), 90).convert("RGB").save(folder / "wide.png")
    Image.effect_noise((48, 48), 90).convert("RGB").save(folder / "green.jpg")
    return folder


@pytest.fixture
def cases(pictures) -> dict[str, Record]:
    """Conversations with none, one and several pictures, and of several turns."""
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


@pytest.fixture
def write_json(tmp_path: Path):
    def write(rows: object, name: str = "train.json") -> Path:
        path = tmp_path / name
        lines = isinstance(rows, list) and name.endswith(".jsonl")
        path.write_text("\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows))
        return path

    return write
