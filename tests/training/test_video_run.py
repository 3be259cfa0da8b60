"""Runs on videos: every stage of tiny models that take them, packed too; their routers see image tokens where frames are."""

import json

import pytest
import torch
import transformers
from small_runs import make_recipe
from tiny.families import IMAGE_TOKEN, VIDEO_TOKEN, make
from tiny.workspace import TEMPLATE, make_tokenizer
from tokenizers import Tokenizer

from evomoe.data.conversations import Collator
from evomoe.model.loading import load_model
from evomoe.recipe.options import StageOptions
from evomoe.support.errors import OptionError
from evomoe.training.checked_run import check_run, load_data
from evomoe.training.run import run

av = pytest.importorskip("av")
pytest.importorskip("torchvision")

MARKS = {
    "qwen2.5-vl": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
    "llava-onevision": ("<image>", "<video>"),
}


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(frames):
            frame = torch.full((16, 16, 3), 20 * number, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_processor(family):
    state = json.loads(make_tokenizer().backend_tokenizer.to_str())
    image, video = ("<image>", "<video>") if family == "llava-onevision" else ("<|image_pad|>", "<|video_pad|>")
    special = {image: IMAGE_TOKEN, video: VIDEO_TOKEN}
    if family != "llava-onevision":
        special |= {"<|vision_start|>": 122, "<|vision_end|>": 123}
    vocabulary = state["model"]["vocab"]
    vocabulary.pop("<image>")
    vocabulary |= special
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<image>"] + [
        {"id": number, "content": text, "special": True} | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for text, number in special.items()
    ]
    of_image, of_video = MARKS[family]
    template = TEMPLATE.replace("'<image>' if", f"'{of_image}' if").replace(
        "else part['text']", f"else '{of_video}' if part['type'] == 'video' else part['text']"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left",
    )  # fmt: skip
    if family == "llava-onevision":
        size = {"height": 16, "width": 16}
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=[[16, 32], [32, 16]]),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=4,
            vision_feature_select_strategy="full",
            chat_template=template,
        )
    pixels = {"shortest_edge": 8 * 8, "longest_edge": 16 * 16}
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessorPil(size=pixels, **sizes),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(size=pixels, **sizes),
        chat_template=template,
    )


@pytest.fixture(params=MARKS)
def there(request, workspace):
    """A workspace whose model takes videos; its records have one, a picture, both or none."""
    torch.manual_seed(0)
    make(request.param).save_pretrained(workspace / "model")
    make_processor(request.param).save_pretrained(workspace / "model")
    for name, frames in (("long", 9), ("short", 3)):
        write_video(workspace / "images" / f"{name}.mp4", frames)
    shown = [{"video": "long.mp4"}, {"video": "short.mp4", "image": "0.png"}, {"image": "1.png"}, {}]
    marks = ["<video>\n", "<image>\n<video>\n", "<image>\n", ""]
    records = [
        media
        | {"conversations": [{"from": "human", "value": f"{mark}what color is the shape ?"}, {"from": "gpt", "value": "red"}]}
        for _ in range(4)
        for media, mark in zip(shown, marks, strict=True)
    ]
    (workspace / "data.json").write_text(json.dumps(records))
    return workspace


def recipe_of(there, **changes):
    stages = {f"stage{n}": StageOptions(steps=2, batch_size=4, accumulation=1, train=train) for n, train in enumerate(
        ("projector", "text+projector", "ffn", "router"))}  # fmt: skip
    return make_recipe(there, stages=(1, 2, 3), **stages).but(video_frames=4, **changes)


def test_a_run_on_videos_goes_through_all_stages(there):
    recipe = recipe_of(there)
    final = run(recipe)
    assert (there / "run" / "report.md").is_file()
    model = load_model(final).eval()
    dataset = load_data(recipe, check_run(recipe.but(output=str(there / "other"))).processor)[3]
    batch = Collator(dataset.processor)([dataset[number] for number in range(4)])
    with torch.no_grad():
        records = model(**batch, output_router_logits=True).records
    ids = batch["input_ids"][batch["attention_mask"] == 1]
    expected = (ids == IMAGE_TOKEN) | (ids == VIDEO_TOKEN)
    assert (ids == VIDEO_TOKEN).sum() > (ids == IMAGE_TOKEN).sum() / 4 > 0
    assert all(torch.equal(record.modality.is_image_T, expected) for record in records.values())


def test_packed_videos_train_as_padded_ones_do(there):
    losses = []
    for packing in (False, True):
        recipe = recipe_of(there, packing=packing, stages=(1,), output=str(there / f"run-{packing}"))
        run(recipe, report=False)
        lines = (there / f"run-{packing}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_number_of_frames_is_positive(there):
    with pytest.raises(OptionError, match="^video_frames: 0 must be a whole number from 1"):
        recipe_of(there).but(video_frames=0)
