"""Videos: read, checked, sampled, labelled around. With PyAV and torchvision, as the extra ``video`` installs them."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from rows import llava
from spoken import END, answers

from evomoe.data import kept_survey, records, row_check
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.labels import IGNORED
from evomoe.data.records import BadRecordError, load_records
from evomoe.data.turns import Turn
from evomoe.data.videos import VideoReader, VideoSize, check_video

av = pytest.importorskip("av")
pytest.importorskip("torchvision")

TEMPLATE = """{% for message in messages %}<|turn|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}</s>
{% endfor %}{% if add_generation_prompt %}<|turn|>assistant
{% endif %}"""


def make_video(path, frames=12, size=(64, 48), rate=4):
    """A video whose frame n is grey of 16 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 16 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def videos(pictures):
    """The folder of pictures with long.mp4 (12 frames of 64 x 48) and short.mp4 (3 of 80 x 80)."""
    make_video(pictures / "long.mp4")
    make_video(pictures / "short.mp4", 3, (80, 80))
    return pictures


def qwen(name, tokenizer):
    import transformers

    tokenizer.add_special_tokens({"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>"]})
    of_images = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    of_videos = "Qwen3VLVideoProcessor" if name == "Qwen3VL" else "Qwen2VLVideoProcessor"
    return getattr(transformers, f"{name}Processor")(
        of_images,
        tokenizer,
        getattr(transformers, of_videos)(size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64}),
        chat_template=TEMPLATE.replace("IMAGE", "<|image_pad|>").replace("VIDEO", "<|video_pad|>"),
    )


def onevision(tokenizer):
    import transformers

    size = {"height": 28, "width": 28}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]})
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=[[28, 28], [56, 56]]),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )


MAKERS = {
    "qwen2-vl": partial(qwen, "Qwen2VL"),
    "qwen2.5-vl": partial(qwen, "Qwen2_5_VL"),
    "qwen3-vl": partial(qwen, "Qwen3VL"),
    "onevision": onevision,
}


@pytest.fixture(params=MAKERS)
def watcher(request, tokenizer):
    """A processor that takes videos."""
    return MAKERS[request.param](tokenizer)


TALKS = {
    "one": llava(None, "<video>\nwhat color?", "blue", video="long.mp4"),
    "short": llava(None, "<video>\nwhat color?", "blue", video="short.mp4"),
    "with a picture": llava("red.png", "<video> and <image>\nwhat is it?", "a shape", video="long.mp4"),
    "several": llava(["red.png", "wide.png"], "<image><video><image> and <video>?", "all", videos=["short.mp4", "long.mp4"]),
}


def test_rows_have_videos_in_a_field_or_in_parts(videos):
    part = {"type": "video", "video": "long.mp4"}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}, {"role": "assistant", "content": "it"}]
    shown = [{"type": "video", "index": 0}, {"type": "text", "text": "what?"}]
    rows = [
        {"messages": turns},
        {"messages": [turns[0] | {"content": shown}, turns[1]], "videos": ["long.mp4"]},
        llava(None, "<video>what?", "it", video="long.mp4"),
        llava(None, "<video>what?", "it", video={"path": "long.mp4", "bytes": None}),
    ]
    for record in load_records(rows, videos):
        assert record.turns == (Turn("user", "<video>what?"), Turn("assistant", "it"))
        assert record.videos == (str(videos / "long.mp4"),) and record.images == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (llava(None, "what is <video>?"), "the text has 1 <video> but the record has 0 videos"),
        (llava(None, "what?", video="long.mp4"), "the text has 0 <video> but the record has 1 video"),
        (llava(None, "<video>", video="none.mp4"), "none.mp4 does not exist"),
        (llava(None, "<video>", video="red.png"), "red.png does not say how many frames it has"),
        (llava(None, "<video>", video="text.mp4"), "text.mp4 is not a video in a format that FFmpeg knows"),
        (llava(None, "<video>", video="../long.mp4"), "leaves the image folder"),
        (
            llava(None, "<video>", video="https://x.org/a.mp4"),
            "the video https://x.org/a.mp4 is not a file; save it, and name the file",
        ),
        (llava(None, "<video>", video=b"abc"), "a video must be the path of its file, not a bytes"),
        (llava(None, "<video>", video={"bytes": b"abc", "path": None}), "a video must be the path of its file, not a NoneType"),
        (
            llava(None, "<video>", video="a.mp4", videos=["a.mp4"]),
            "a record has its videos in 'video' or in 'videos', not in both",
        ),
    ],
)
def test_videos_that_cannot_be_are_refused(videos, row, message):
    (videos / "text.mp4").write_text("no video")
    with pytest.raises(BadRecordError) as caught:
        load_records([row], videos)
    assert message in str(caught.value) and "record 0" in str(caught.value)


def test_large_frames_and_damage_are_found(videos):
    row = llava(None, "<video>", video="long.mp4")
    with pytest.raises(BadRecordError, match="frames of 64 x 48 pixels; the limit is 3,000 pixels"):
        load_records([row], videos, max_pixels=3000)
    content = bytearray((videos / "long.mp4").read_bytes())
    start = content.index(b"mdat")
    size = int.from_bytes(content[start - 4 : start]) - 8  # of the frames alone; what the file says of them stays
    content[start + 104 : start + 4 + size] = bytes(size - 100)
    (videos / "long.mp4").write_bytes(content)
    assert len(load_records([row], videos)) == 1
    with pytest.raises(
        BadRecordError, match=r"record 0.*: video .*long.mp4 (cannot be decoded|has no frame that can be decoded)"
    ):
        load_records([row], videos, check_pictures="decode")


def test_without_pyav_it_is_said_once(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"^videos are decoded by PyAV, which is not installed: pip install 'evomoe\[video\]'"):
        load_records([llava(None, "<video>", video="long.mp4")], videos, on_bad_record="skip")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "tokenizer"])
def test_a_family_that_takes_none_refuses_the_record(videos, make_processor, tokenizer, family):
    processor = tokenizer if family == "tokenizer" else make_processor(family)
    processor.chat_template = TEMPLATE
    loaded = load_records([llava(None, "hi", "ho"), TALKS["one"]], videos)
    dataset = ConversationDataset(loaded, processor, on_bad_record="skip")
    with pytest.raises(BadRecordError, match=rf"record 1 .*: it has a video, and {type(processor).__name__} takes none"):
        ConversationDataset(loaded, processor).check()
    dataset.check()
    assert len(dataset) == 1 and len(dataset.skipped) == 1


@pytest.mark.parametrize("talk", TALKS)
def test_labels_are_the_answers_around_videos(watcher, videos, talk):
    loaded = load_records([TALKS[talk]], videos)
    dataset = ConversationDataset(loaded, watcher, video_frames=4)
    dataset.check()
    item, answer = dataset[0], TALKS[talk]["conversations"][1]["value"]
    assert answers(item, watcher.tokenizer) == answer + END
    labelled = item["labels"] != IGNORED
    assert torch.equal(item["labels"][labelled], item["input_ids"][labelled])
    assert item["pixel_values_videos"].shape[0] > 0 and (item["input_ids"] == watcher.video_token_id).sum() > 1
    if len(loaded[0].images) < 2:  # OneVision shows several in another way than one
        # Qwen3-VL writes times of other lengths.
        assert abs(dataset.lengths()[0] - len(item["input_ids"])) <= 2 * len(loaded[0].videos)


def test_frames_are_those_that_the_processor_would_take(videos, tokenizer):
    processor = MAKERS["qwen2-vl"](tokenizer)
    read = VideoReader(processor, 4).read(str(videos / "long.mp4"))
    assert read.metadata.frames_indices == [0, 3, 6, 9] and read.metadata.fps == 4 and read.metadata.total_num_frames == 12
    assert [round(float(frame.mean()) / 16) for frame in read.frames_THW3] == [0, 3, 6, 9]
    decoded = processor.video_processor.sample_frames(read.metadata, num_frames=4)
    assert [int(index) for index in decoded] == read.metadata.frames_indices
    short = VideoReader(processor, 9).read(str(videos / "short.mp4"))
    assert short.frames_THW3.shape == (8, 80, 80, 3) and short.metadata.frames_indices == [0, 0, 1, 1, 1, 1, 2, 2]
    assert VideoReader(processor, 1).frames == 2 and VideoReader(onevision(tokenizer), 1).frames == 1
    assert check_video(str(videos / "short.mp4"), 10**6) == (3, 80, 80)


def test_a_file_with_fewer_frames_than_it_says_shows_its_last_one(videos, tokenizer, monkeypatch):
    monkeypatch.setattr("evomoe.data.videos._size", lambda *_: VideoSize(24, 48, 64))
    read = VideoReader(onevision(tokenizer), 4).read(str(videos / "long.mp4"))
    assert read.metadata.frames_indices == [0, 6, 12, 18]
    assert [round(float(frame.mean()) / 16) for frame in read.frames_THW3] == [0, 6, 11, 11]


def test_videos_of_any_length_and_size_share_a_batch(watcher, videos):
    dataset = ConversationDataset(load_records([*TALKS.values(), llava("red.png")], videos), watcher, video_frames=4)
    items = [dataset[number] for number in range(len(dataset))]
    batch = Collator(watcher)(items)
    assert len(batch["input_ids"]) == 5
    of_videos = [item["pixel_values_videos"] for item in items[:4]]
    assert len(batch["pixel_values_videos"]) == sum(map(len, of_videos))
    assert batch["pixel_values_videos"].shape[1:] == of_videos[0].shape[1:]


def test_a_video_that_changes_is_checked_anew(videos, write_json, tokenizer, monkeypatch):
    for module in (row_check, records):
        monkeypatch.setattr(module, "KEPT_FROM", 1)
    surveyed, original = [], kept_survey.survey
    monkeypatch.setattr(kept_survey, "survey", lambda *a: (surveyed.append(1), original(*a))[1])
    path = write_json([TALKS["one"], TALKS["short"]])

    def lengths(frames=4):
        return ConversationDataset(load_records(path, videos), MAKERS["qwen2-vl"](tokenizer), video_frames=frames).lengths()

    before = lengths()
    assert lengths() == before and len(surveyed) == 1
    assert lengths(8) > before and len(surveyed) == 2
    make_video(videos / "long.mp4", 12, (160, 160))
    assert lengths() > before and len(surveyed) == 3


@pytest.mark.parametrize("family", ["qwen2.5-vl", "onevision"])
def test_check_agrees_with_the_cut_between_videos_and_pictures(videos, tokenizer, family):
    processor = MAKERS[family](tokenizer)
    talk = llava("red.png", "<video> and <image>\nwhat?", "a shape", video="long.mp4")
    talk["conversations"] += [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "blue"}]
    talk["conversations"][0:0] = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    loaded = load_records([talk], videos)
    whole = len(ConversationDataset(loaded, processor, video_frames=4)[0]["input_ids"])
    verdicts = set()
    for max_length in range(1, whole):
        dataset = ConversationDataset(loaded, processor, max_length, video_frames=4)
        found = []
        for look in (dataset.check, lambda dataset=dataset: dataset[0]):
            try:
                look()
                found.append("good")
            except BadRecordError as error:
                found.append(str(error).rpartition("would ")[2].partition(";")[0])
        assert found[0] == found[1], max_length
        verdicts.add(found[0])
    assert "good" in verdicts and len(verdicts) > 1
