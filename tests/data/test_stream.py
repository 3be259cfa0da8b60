"""Streams: what they read, in which order, and where they go on."""

import io
import itertools
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from evomoe.data.images import open_rgb
from evomoe.data.records import read_record
from evomoe.data.shards import open_shards
from evomoe.data.sources import open_source
from evomoe.data.stream import HEAD, Lane, StreamSource
from evomoe.data.turns import BadRecordError

LIMIT = 10**6


def row(number: int) -> dict:
    return {"id": number, "messages": [{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}]}


def write_lines(folder: Path, counts: list[int]) -> str:
    """JSON lines in as many files as there are counts, and their pattern."""
    numbers = itertools.count()
    for part, count in enumerate(counts):
        (folder / f"part-{part:02}.jsonl").write_text("".join(json.dumps(row(next(numbers))) + "\n" for _ in range(count)))
    return str(folder / "part-*.jsonl")


def write_tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def source(name: str, weight: float = 1.0) -> StreamSource:
    return StreamSource(name, open_shards(name), weight)


def taken(lane: Lane, count: int, start: int = 0) -> list[int]:
    return [lane.take(number).source.rows[0]["id"] for number in range(start, start + count)]


@pytest.fixture
def lines(tmp_path) -> StreamSource:
    return source(write_lines(tmp_path, [7, 0, 9, 5]))


@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_each_record_is_taken_once_in_a_pass_and_the_next_pass_is_in_another_order(lines, buffer, caplog):
    found = taken(Lane([lines], buffer, 0, 0, 1), 63)
    passes = [found[start : start + 21] for start in (0, 21, 42)]
    assert [sorted(one) for one in passes] == [[*range(21)]] * 3
    assert passes[0] != passes[1] != passes[2] and passes[0] != [*range(21)]
    assert caplog.text.count("was read to its end, and begins anew") == 1  # said once


def test_another_seed_is_another_order(lines):
    assert taken(Lane([lines], 4, 0, 0, 1), 21) == taken(Lane([lines], 4, 0, 0, 1), 21) != taken(Lane([lines], 4, 1, 0, 1), 21)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 20, 21, 22, 50])
@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_a_lane_goes_on_at_the_record(lines, tmp_path, buffer, number):
    (tmp_path / "other").mkdir()
    sources = [lines, source(write_lines(tmp_path / "other", [4, 6]), 0.5)]
    whole = Lane(sources, buffer, 0, 0, 1)
    before, after = taken(whole, number), taken(whole, 40, number)
    state = json.loads(json.dumps(whole.state(number)))
    assert taken(Lane(sources, buffer, 0, 0, 1, state), 40, number) == after
    assert taken(Lane(sources, buffer, 0, 0, 1), number + 40) == before + after


def test_a_lane_that_goes_on_reads_no_shard_before_its_own(tmp_path):
    stream = source(write_lines(tmp_path, [10] * 6))
    whole = Lane([stream], 4, 0, 0, 1)
    after = taken(whole, 5, 38)
    read = []
    for shard in stream.shards:
        original = shard.read
        object.__setattr__(shard, "read", lambda start, s=shard, r=original: read.append((s.name, start)) or r(start))
    assert taken(Lane([stream], 4, 0, 0, 1, whole.state(38)), 5, 38) == after
    assert len(read) <= 2 and read[0][1] > 0


@pytest.mark.parametrize("lanes", [2, 3, 4])
@pytest.mark.parametrize("counts", [[6, 6, 6, 6], [24], [1] * 6])
def test_lanes_share_the_records_out(tmp_path, lanes, counts):
    stream = source(write_lines(tmp_path, counts))
    total = sum(counts)
    found = [taken(Lane([stream], 4, 0, lane, lanes), total // lanes) for lane in range(lanes)]
    share = [*itertools.chain.from_iterable(found)]
    assert len(share) == len({*share}) == total // lanes * lanes


def test_lanes_open_only_their_own_shards_where_these_can_be_dealt_out(tmp_path):
    stream = source(write_lines(tmp_path, [6, 6, 6, 6]))
    names = [{Lane([stream], 4, 0, lane, 2).take(number).source.name for number in range(12)} for lane in range(2)]
    assert [len(one) for one in names] == [2, 2] and not names[0] & names[1]


def test_weights_are_shares_in_every_stretch(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    sources = [source(write_lines(tmp_path / "a", [100]), 3), source(write_lines(tmp_path / "b", [7]), 1)]
    lane = Lane(sources, 10, 0, 0, 1)
    of_first = ["/a/" in lane.take(number).source.name for number in range(40)]
    assert [sum(of_first[start : start + 8]) for start in range(0, 40, 8)] == [6] * 5


def test_records_are_named_by_shard_and_number(lines, tmp_path):
    one = lines.shards[2].rows(3)
    assert next(one).where(0, row(10)) == f"{tmp_path}/part-02.jsonl, record 3 (id 10)"
    (tmp_path / "part-02.jsonl").write_text(json.dumps(row(0)) + "\n{broken\n")
    rows = [*source(str(tmp_path / "part-02.jsonl")).shards[0].rows()]
    with pytest.raises(BadRecordError, match=r"part-02.jsonl, record 1: part-02.jsonl, line 2, column 2: broken JSON"):
        read_record(rows[1], None, LIMIT, "header")


def test_lines_are_read_as_without_a_stream(tmp_path):
    path = tmp_path / "0.jsonl"
    text = "\ufeff" + json.dumps(row(0)) + "\r\n\n  \n" + json.dumps(row(1)) + "\n" + json.dumps(row(2))
    path.write_bytes(text.encode())
    (shard,) = open_shards(str(path))
    assert [one.rows[0] for one in shard.rows()] == [*open_source(path).rows] == [row(0), row(1), row(2)]
    assert [(one.first, one.rows[0]["id"]) for one in shard.rows(1)] == [(1, 1), (2, 2)]


def test_the_head_is_what_stands_first(lines):
    assert [one["id"] for one in lines.head().rows] == [*range(21)] and HEAD > 21


@pytest.mark.parametrize("named", ["{{00..03}}", "*", ""])
def test_shards_are_a_range_a_pattern_or_a_folder(tmp_path, named):
    pattern = write_lines(tmp_path, [1, 1, 1, 1])
    name = pattern.replace("*", named.format()) if named else str(tmp_path)
    assert [Path(shard.name).name for shard in open_shards(name)] == [f"part-0{number}.jsonl" for number in range(4)]


def test_what_are_no_shards_is_said(tmp_path):
    write_lines(tmp_path, [1, 1])
    with pytest.raises(ValueError, match=r"part-02.jsonl: there is no such file"):
        open_shards(str(tmp_path / "part-{00..03}.jsonl"))
    (tmp_path / "more.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shards are of one kind, and these are .jsonl and .tar"):
        open_shards(str(tmp_path))
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(ValueError, match=r"table.csv: shards are files that end in .tar"):
        open_shards(str(tmp_path / "table.csv"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises((ValueError, BadRecordError), match=r"broken.parquet: .*[Pp]arquet"):
        source(str(tmp_path / "broken.parquet")).head()
    with pytest.raises(BadRecordError, match=r"more.tar is no tar, or it is damaged"):
        source(str(tmp_path / "more.tar")).head()


def test_a_folder_of_save_to_disk_and_a_json_list_are_streams_too(tmp_path):
    rows = [row(number) for number in range(9)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for name in ("saved", "list.json"):
        (shard,) = open_shards(str(tmp_path / name))
        assert [one.rows[0]["id"] for one in shard.rows(4)] == [4, 5, 6, 7, 8]


@pytest.fixture
def parquet(tmp_path) -> Path:
    """Two parquet files with pictures in a column."""
    for part in range(2):
        rows = [row(number) | {"image": {"bytes": picture("red"), "path": None}, "extra": 1} for number in range(3)]
        for one in rows:
            one["messages"] = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": str(part)}]
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(str(tmp_path / f"train-{part}-of-2.parquet"))
    return tmp_path


def test_parquet_files_are_streamed_with_their_pictures_encoded(parquet):
    shards = open_shards(str(parquet / "*.parquet"))
    (found,) = shards[1].rows(2)
    assert isinstance(found.rows[0]["image"]["bytes"], bytes) and "extra" not in found.rows[0]
    assert shards[1].unread == ("extra",)
    record = read_record(found, None, LIMIT, "decode")
    assert record.turns[1].text == "1" and open_rgb(record.images[0]).getpixel((0, 0)) == (255, 0, 0)
    assert record.where.endswith("train-1-of-2.parquet, record 2 (id 2)")


def test_a_hub_dataset_is_streamed_by_its_shards(parquet, monkeypatch):
    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: original(str(parquet), **options))
    shards = open_shards("someone/pictures:train")
    assert [shard.name for shard in shards] == ["someone/pictures, shard 0", "someone/pictures, shard 1"]
    assert shards[0].unread == ("extra",)
    (found,) = pickle.loads(pickle.dumps(shards[1])).rows(2)  # as workers are given them that are not forked
    assert read_record(found, None, LIMIT, "header").turns[1].text == "1"
    with pytest.raises(ValueError, match=r"someone/pictures: there is no such file or folder, and the hub gives no such dataset"):
        open_shards("someone/pictures:test")


def test_a_hub_dataset_of_tars_is_streamed(tmp_path, monkeypatch):
    record = json.dumps({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]}).encode()
    write_tar(
        tmp_path / "train-0.tar", {f"{n}.{kind}": c for n in range(4) for kind, c in (("json", record), ("png", picture("red")))}
    )
    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: original(str(tmp_path), **options))
    (shard,) = open_shards("someone/tars")
    found = [*shard.rows(2)]
    assert [one.rows[0]["id"] for one in found] == ["2", "3"]
    assert open_rgb(read_record(found[0], None, LIMIT, "header").images[0]).size == (8, 8)


def sample_files(key: str, record: object = None, text: str | None = None, **pictures: str) -> dict[str, bytes]:
    files = {f"{key}.{kind}.png": picture(color) for kind, color in pictures.items()}
    files |= {} if record is None else {f"{key}.json": json.dumps(record).encode()}
    return files | ({} if text is None else {f"{key}.txt": text.encode()})


def conversation(marks: int, **fields: object) -> dict:
    return {"conversations": [{"from": "human", "value": "<image>" * marks + "a ?"}, {"from": "gpt", "value": "b"}], **fields}


def test_tars_hold_pictures_records_and_captions(tmp_path):
    files = sample_files("x/000", conversation(1, image="coco/1.jpg"), a="red")
    files |= sample_files("x/001", conversation(0, id="own"))
    files |= sample_files("x/002", conversation(2), b="white", a="blue")
    files |= sample_files("x/003", {"width": 8}, " a red circle \n", a="red") | {"._x": b"", "x/.hidden": b""}
    (shard,) = open_shards(write_tar(tmp_path / "0.tar", files))
    records = [read_record(one, None, LIMIT, "decode") for one in shard.rows()]
    assert [record.where.partition(", ")[2] for record in records] == [
        "record 0 (id 'x/000')", "record 1 (id 'own')", "record 2 (id 'x/002')", "record 3 (id 'x/003')",
    ]  # fmt: skip
    colors = [[open_rgb(image).getpixel((0, 0)) for image in record.images] for record in records]
    assert colors == [[(255, 0, 0)], [], [(0, 0, 255), (255, 255, 255)], [(255, 0, 0)]]
    assert [turn.text for turn in records[3].turns] == ["<image>", "a red circle"]
    assert [one.first for one in shard.rows(2)] == [2, 3]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"0.json": b"{"}, "sample '0', line 1, column 2: broken JSON"),
        ({"0.json": b"[1]"}, "its .json must hold an object"),
        ({"0.json": b"\xff"}, "sample '0': .*utf-8"),
        ({"0.txt": b"a"}, "sample '0' has no .json with a conversation, and no .txt with a picture"),
        ({"0.json": b'{"caption": "a"}', "0.png": picture("red")}, "no .json with a conversation"),
        ({"0.json": json.dumps(conversation(0)).encode(), "0.mp4": b"a"}, "sample '0' has a .mp4"),
        ({"0.json": json.dumps(conversation(1)).encode()}, "the text has 1 <image> but the record has 0 images"),
        ({"0.json": json.dumps(conversation(1)).encode(), "0.png": picture("red")[:-40]}, "image in the image column is not"),
    ],
)
def test_a_bad_sample_is_a_bad_record_and_the_next_one_is_read(tmp_path, files, why):
    name = write_tar(tmp_path / "0.tar", files | {"1.json": json.dumps(conversation(0)).encode()})
    bad, good = open_shards(name)[0].rows()
    with pytest.raises(BadRecordError, match=rf"0.tar, record 0.*: .*{why}"):
        read_record(bad, None, LIMIT, "decode")
    assert read_record(good, None, LIMIT, "decode").turns[1].text == "b"


def test_a_source_without_records_for_a_process_is_refused(tmp_path):
    stream = source(write_lines(tmp_path, [1]))
    with pytest.raises(BadRecordError, match="there are no records for process 1 of 2"):
        Lane([stream], 4, 0, 1, 2).take(0)
