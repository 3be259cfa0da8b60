"""Streams whose shards are damaged, of different size or slow: nothing is lost, repeated or waited for without a word."""

import json
import tarfile
import time

import pytest
from test_stream import LIMIT, conversation, picture, row, sample_files, source, taken, write_lines, write_tar

from evomoe.data.images import open_rgb
from evomoe.data.records import read_record
from evomoe.data.shards import Shard, open_shards
from evomoe.data.stream import Lane, StreamSource
from evomoe.data.turns import BadRecordError, DamagedShardError


def tar_of(folder, count: int = 20) -> bytes:
    files = {f"{n:02}.json": json.dumps(conversation(0)).encode() for n in range(count)}
    write_tar(folder / "0.tar", files)
    return (folder / "0.tar").read_bytes()


DAMAGE = {
    "a header": lambda whole: whole[:10240] + b"x" * 300 + whole[10540:],
    "cut before a file": lambda whole: whole[:10240],
    "cut in a header": lambda whole: whole[: 10240 + 100],
    "zeros within": lambda whole: whole[:10240] + bytes(2048) + whole[10240:],
    "two in one": lambda whole: whole + whole,
    "no end mark": lambda whole: whole[: 20 * 1024],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_is_named_and_not_taken_for_a_shorter_one(damage, tmp_path):
    whole = tar_of(tmp_path)
    assert len([*open_shards(str(tmp_path / "0.tar"))[0].rows()]) == 20
    (tmp_path / "0.tar").write_bytes(DAMAGE[damage](whole))
    with pytest.raises(DamagedShardError, match=r"0\.tar is damaged or was cut after [\d,]+ bytes"):
        [*open_shards(str(tmp_path / "0.tar"))[0].rows()]


def test_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        (tmp_path / "1.png").write_bytes(picture("red"))
        tar.add(tmp_path / "1.png", "1.png")
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        tar.addfile(link)
    with pytest.raises(DamagedShardError, match="2.png is a link; write the tar with --hard-dereference"):
        [*open_shards(str(tmp_path / "0.tar"))[0].rows()]


def colors_of(tmp_path, record: dict, names: list[str]) -> list[str]:
    """The colours of a sample's pictures in order; the n-th of the names is of the n-th shade of red."""
    files = {f"0001.{name}": picture(f"rgb({n * 10},0,0)") for n, name in enumerate(names)}
    write_tar(tmp_path / "0.tar", files | {"0001.json": json.dumps(record).encode()})
    ((found,),) = [[*open_shards(str(tmp_path / "0.tar"))[0].rows()]]
    return [names[open_rgb(image).getpixel((0, 0))[0] // 10] for image in read_record(found, None, LIMIT, "header").images]


def test_pictures_of_a_sample_are_in_the_order_of_the_record_else_of_numbers(tmp_path):
    names = ["after.png", "before.png"]
    wanted = conversation(2, images=["0001.before.png", "0001.after.png"])
    assert colors_of(tmp_path, wanted, names) == ["before.png", "after.png"]
    assert colors_of(tmp_path, conversation(2, images=["a/x.jpg", "a/y.jpg"]), names) == names
    many = [f"{n}.png" for n in (10, 2, 1, 0, 11, 3, 4, 5, 6, 7, 8, 9)]
    assert colors_of(tmp_path, conversation(12), many) == [f"{n}.png" for n in range(12)]
    with pytest.raises(BadRecordError, match=r"sample '0001' has .*before.png, and its .json names 0001.before.png, other.png"):
        colors_of(tmp_path, conversation(2, images=["0001.before.png", "other.png"]), names)


def test_a_sample_s_own_fields_stand(tmp_path):
    write_tar(tmp_path / "0.tar", sample_files("1", conversation(0, id="mine")) | {"1.id": b"other"})
    (found,) = open_shards(str(tmp_path / "0.tar"))[0].rows()
    assert found.rows[0]["id"] == "mine"


def test_shards_of_different_size_are_dealt_out_anew(tmp_path):
    stream = source(write_lines(tmp_path, [4, 400]))
    for lane in range(2):
        found = taken(Lane([stream], 8, 0, lane, 2), 2000)
        assert sum(number >= 4 for number in found) > 0.5 * 2000 and len({*found}) > 200


def test_an_empty_shard_ends_no_run(tmp_path):
    stream = source(write_lines(tmp_path, [0, 5]))
    for lane in range(2):
        assert {*taken(Lane([stream], 4, 0, lane, 2), 200)} == {*range(5)}


def test_nobody_waits_for_a_stream_that_is_closed():
    def slowly(start):
        for number in range(start, 10**6):
            time.sleep(0.01)
            yield row(number)

    lane = Lane([StreamSource("slow", (Shard("slow", ".", slowly),))], 100, 0, 0, 1)
    lane.take(0)
    lane.close()
    reader = lane._blocks[0]._reader
    begin = time.monotonic()
    reader.shutdown(wait=True)  # as the end of the program does
    assert time.monotonic() - begin < 0.5


def test_a_folder_of_several_splits_is_not_one_source(tmp_path):
    for name in ("train-0.jsonl", "test-0.jsonl"):
        (tmp_path / name).write_text(json.dumps(row(0)) + "\n")
    with pytest.raises(
        ValueError, match=r"holds shards of several splits: .*Name those that are meant, such as '.*/train-\*.jsonl'"
    ):
        open_shards(str(tmp_path))
    with pytest.raises(ValueError, match=r"a range goes up"):
        open_shards(str(tmp_path / "{5..1}.jsonl"))


def test_where_a_lane_stood_is_not_kept_for_ever(tmp_path):
    lane = Lane([source(write_lines(tmp_path, [10]))], 2, 0, 0, 1)
    for number in range(1000):
        lane.take(number)
    state = lane.state(990)
    assert len(lane._marks) < 10
    again = Lane([source(str(tmp_path / "part-*.jsonl"))], 2, 0, 0, 1, state)
    assert taken(again, 10, 990) == taken(Lane([source(str(tmp_path / "part-*.jsonl"))], 2, 0, 0, 1), 1000)[990:]
