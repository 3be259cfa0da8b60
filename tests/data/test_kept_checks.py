"""The second check of the same data starts at once, and is never that of other data."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rows import llava

from evomoe.data import kept, kept_survey, record_content, records, row_check, sources
from evomoe.data.conversations import ConversationDataset
from evomoe.data.kept import Found, Keeper
from evomoe.data.records import BadRecordError, load_records

OPTIONS = {"on_bad_record": "skip", "max_pixels": 10_000, "check_pictures": "header"}


@pytest.fixture
def looked(monkeypatch, tmp_path):
    """What is looked at, rather than known: pictures, records' labels, JSON as a whole. Few records are kept too."""
    seen = []
    for module, name in (
        (row_check, "check_image"),
        (kept_survey, "survey"),
        (sources, "places_in_list"),
        (record_content, "_ends"),
    ):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, o=original, **k: (seen.append(n), o(*a, **k))[1])
    for module in (row_check, records):
        monkeypatch.setattr(module, "KEPT_FROM", 1)
    monkeypatch.setattr(sources, "_LARGE", 1)
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "cache"))
    return seen


@pytest.fixture
def data(pictures, write_json):
    """Records with and without pictures, one of them bad for its picture is missing, one for its answer is."""
    rows = [llava("red.png"), llava(None, "ä?"), llava("wide.png", answer="blue " * 30), llava("none.png"), llava(answer="")]
    return write_json([row | {"id": number, "more": 1} for number, row in enumerate(rows)])


def check(data, pictures, processor, workers=0, max_length=120, image_aspect="keep", template_options=None, **options):
    """All that a run learns of its records before it trains."""
    loaded = load_records(data, pictures, **(OPTIONS | options), workers=workers)
    dataset = ConversationDataset(
        loaded, processor, max_length, "skip", image_aspect, template_options=template_options, workers=workers
    )
    dataset.check()
    return [record for record in dataset.records], dataset.lengths(), dataset.skipped, dataset.notes, loaded.content({})


def test_nothing_is_looked_at_twice(looked, data, pictures, make_processor):
    first = check(data, pictures, make_processor())
    assert len(first[0]) == 3 and len(first[2]) == 2 and "none.png does not exist" in first[2][0]
    assert {*looked} == {"check_image", "survey", "places_in_list", "_ends"}
    looked.clear()
    assert check(data, pictures, make_processor()) == first
    assert {*looked} <= {"check_image"} and len(looked) <= 2  # of the bad records: what is missing may have come
    data.write_text(json.dumps(json.loads(data.read_text())[:3]))
    good = check(data, pictures, make_processor())
    looked.clear()
    assert check(data, pictures, make_processor()) == good and looked == []


def _touch(path):
    os.utime(path, ns=(1, 1))


def _another(path):
    Image.effect_noise((16, 80), 90).convert("RGB").save(path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


CHANGES = {
    "a record": lambda data, pictures: data.write_text(data.read_text().replace("blue", "abcd", 1)),
    "a field": lambda data, pictures: data.write_text(data.read_text().replace('"more"', '"other"', 1)),
    "the order": lambda data, pictures: data.write_text(json.dumps(json.loads(data.read_text())[::-1])),
    "a picture's date": lambda data, pictures: _touch(pictures / "red.png"),
    "a picture": lambda data, pictures: _another(pictures / "wide.png"),
    "a picture that is damaged": lambda data, pictures: _cut(pictures / "wide.png"),
    "a picture that is gone": lambda data, pictures: (pictures / "wide.png").unlink(),
    "a picture that has come": lambda data, pictures: _another(pictures / "none.png"),
}
OTHER_OPTIONS = {
    "max_length": {"max_length": 40},
    "image_aspect": {"image_aspect": "pad"},
    "max_pixels": {"max_pixels": 4_000},
    "check_pictures": {"check_pictures": "decode"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_checked_anew(looked, data, pictures, make_processor, change):
    before = check(data, pictures, make_processor("qwen2_vl"))
    CHANGES[change](data, pictures)
    now = check(data, pictures, make_processor("qwen2_vl"))
    shutil.rmtree(data.parent / ".evomoe")
    assert now == check(data, pictures, make_processor("qwen2_vl")) and now != before
    looked.clear()
    assert check(data, pictures, make_processor("qwen2_vl")) == now
    assert "survey" not in looked and "_ends" not in looked


@pytest.mark.parametrize("other", OTHER_OPTIONS)
def test_other_options_are_checked_anew(looked, data, pictures, make_processor, other):
    before = check(data, pictures, make_processor("qwen2_vl"))
    looked.clear()
    now = check(data, pictures, make_processor("qwen2_vl"), **OTHER_OPTIONS[other])
    assert looked
    shutil.rmtree(data.parent / ".evomoe")
    assert now == check(data, pictures, make_processor("qwen2_vl"), **OTHER_OPTIONS[other])
    assert (now != before) == (other != "check_pictures")


def test_another_processor_is_another_check(looked, data, pictures, make_processor):
    def changed(change):
        processor = make_processor()
        change(processor)
        return processor

    ways = {
        "template": lambda one: setattr(one, "chat_template", one.chat_template.replace("<|turn|>", "<|turn|>a")),
        "tokenizer": lambda one: one.tokenizer.add_tokens(["what is"]),
        "image processor": lambda one: setattr(one.image_processor, "size", {"height": 64, "width": 64}),
        "patches": lambda one: setattr(one, "patch_size", 16),
    }
    found = [check(data, pictures, changed(change)) for change in (lambda one: None, *ways.values())]
    assert looked.count("survey") == len(found)
    assert len({tuple(lengths) for _, lengths, *_ in found}) >= len(found) - 1
    for change, before in zip((lambda one: None, *ways.values()), found, strict=True):
        assert check(data, pictures, changed(change)) == before
    assert looked.count("survey") == len(found)


def test_another_version_and_other_code_check_anew(looked, data, pictures, make_processor, monkeypatch):
    check(data, pictures, make_processor())
    for name, value in (("__version__", "other"), ("_code", lambda: "other")):
        looked.clear()
        monkeypatch.setattr(kept, name, value)
        check(data, pictures, make_processor())
        assert "survey" in looked and "check_image" in looked


def test_a_template_that_writes_the_date_is_checked_each_day(looked, data, pictures, make_processor, monkeypatch):
    def on(day):
        class Day:
            today = staticmethod(lambda: day)

        monkeypatch.setattr(kept_survey, "date", Day)
        processor = make_processor()
        processor.chat_template += "{% if false %}{{ strftime_now('%d') }}{% endif %}"
        looked.clear()
        check(data, pictures, processor)
        return "survey" in looked

    assert on("Monday") and not on("Monday") and on("Tuesday")


DAMAGES = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-3],
    "of other bytes": lambda content: content[:-3] + bytes(255 - byte for byte in content[-3:]),
    "no such format": lambda content: b"\x80\x04" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_made_anew(looked, data, pictures, make_processor, damage):
    first = check(data, pictures, make_processor())
    for path in (data.parent / ".evomoe").glob("*.safetensors"):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    looked.clear()
    assert check(data, pictures, make_processor()) == first
    assert {"check_image", "survey", "places_in_list"} <= {*looked}
    looked.clear()
    assert check(data, pictures, make_processor()) == first and "survey" not in looked


def test_a_folder_that_cannot_be_written_is_left_alone(looked, data, pictures, make_processor, tmp_path, caplog):
    (data.parent / ".evomoe").write_text("")  # a file where the folder would be
    first = check(data, pictures, make_processor())
    assert [*(tmp_path / "cache" / "checks").rglob("*.safetensors")]
    looked.clear()
    assert check(data, pictures, make_processor()) == first and "survey" not in looked and not caplog.records
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    assert check(data, pictures, make_processor()) == first
    assert "cannot be kept" in caplog.text


def test_outcomes_of_other_content_do_not_pile_up(looked, data, pictures, make_processor):
    check(data, pictures, make_processor())
    names = {path.name for path in (data.parent / ".evomoe").glob("*.safetensors")}
    check(data, pictures, make_processor(), max_length=60)
    assert names < {path.name for path in (data.parent / ".evomoe").glob("*.safetensors")}
    CHANGES["a record"](data, pictures)
    check(data, pictures, make_processor())
    assert not names & {path.name for path in (data.parent / ".evomoe").glob("*.safetensors")}


def test_a_saved_dataset_is_known_by_its_files(looked, pictures, make_processor, tmp_path):
    import datasets

    def save(answers):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        rows = [{"image": "red.png", "messages": llava(answer=a)["conversations"]} for a in answers]
        for row in rows:
            row["messages"] = [{"role": turn["from"], "content": turn["value"]} for turn in row["messages"]]
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")

    save(["a shape", "blue"])
    first = check(tmp_path / "saved", pictures, make_processor())
    looked.clear()
    assert check(tmp_path / "saved", pictures, make_processor()) == first and looked == []
    save(["a shape", "abcd"])
    assert check(tmp_path / "saved", pictures, make_processor()) != first and "survey" in looked


def test_bad_records_stop_a_run_each_time(looked, data, pictures):
    def message():
        with pytest.raises(BadRecordError) as caught:
            load_records(data, pictures)
        return str(caught.value)

    assert message() == message() and "record 4 (id 4): turn 1 is the assistant's and is empty" in message()


def test_workers_find_the_same(data, pictures, make_processor, write_json):
    alone = check(data, pictures, make_processor())
    path = write_json([*json.loads(data.read_text())] * 450, "many.json")
    many, shared = (check(path, pictures, make_processor(), workers=workers) for workers in (0, 2))
    assert many == shared and many[1] == alone[1] * 450


def test_workers_say_what_is_broken(pictures, write_json):
    path = write_json([llava()] * 2500, "train.jsonl")
    path.write_text(path.read_text() + "\n{broken")
    with pytest.raises(ValueError, match=r"^train.jsonl, line 2501, column 2: broken JSON"):
        load_records(path, pictures, workers=2)


def test_of_several_processes_one_checks(tmp_path):
    made = []

    def make(_):
        made.append(1)
        time.sleep(0.3)
        return 7

    def outcome(_):
        keeper = Keeper("data", lambda: "content", tmp_path)
        write, read = lambda value: Found({"a": np.array([value])}, {}), lambda found: int(found.arrays["a"][0])
        return keeper.outcome("kind", {}, make, write, read)

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(outcome, range(4))] == [7] * 4
    assert len(made) == 1


def test_who_waits_for_another_process_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kept, "PATIENCE", 0.05)
    keeper = Keeper("data", lambda: "content", tmp_path)
    (tmp_path / ".evomoe").mkdir()
    read = {"write": lambda _: None, "read": lambda _: None}
    with FileLock(tmp_path / ".evomoe" / "data.lock") as lock, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(keeper.outcome, "kind", {}, lambda _: 7, **read)
        time.sleep(0.3)
        assert not waiting.done() and "data: another process checks the same data. This one waits" in caplog.text
        lock.release()
        assert waiting.result(timeout=10) == 7
