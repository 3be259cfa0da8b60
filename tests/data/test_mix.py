"""Records of several sources as one: each once, named by its source, checked with the others."""

import json

import pytest
from rows import llava

from evomoe.data import kept_survey, records, row_check
from evomoe.data.conversations import ConversationDataset
from evomoe.data.mix import MixedRecords, Share
from evomoe.data.records import BadRecordError, load_records
from evomoe.data.sources import open_sources


@pytest.fixture
def files(write_json, pictures):
    """Two files of 4 and 3 records; the last of the second is too long for 60 tokens."""
    first = write_json([llava("red.png", id=f"a{n}") for n in range(4)], "first.json")
    long = llava(None, "what " * 90, id="b2")
    second = write_json([llava("wide.png", id="b0"), llava(None, "hello", id="b1"), long], "second.json")
    return first, second


def mixed(files, pictures, weights=(1.0, 1.0), **options):
    return MixedRecords([load_records(file, pictures, **options) for file in files], weights)


def test_records_stand_one_source_after_the_other(files, pictures):
    mix = mixed(files, pictures)
    names = [record.where for record in mix]
    assert names == [
        *(f"first.json, record {n} (id 'a{n}')" for n in range(4)),
        *(f"second.json, record {n} (id 'b{n}')" for n in range(3)),
    ]
    assert len(mix) == 7 and mix[-1].where == names[-1] and [one.where for one in mix[2:6]] == names[2:6]
    assert [mix.source_of(number) for number in range(7)] == [0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(IndexError):
        mix[7]


def test_shares_count_good_records(files, pictures, make_processor):
    mix = mixed(files, pictures, (0.6, 2.0))
    dataset = ConversationDataset(mix, make_processor(), 60, "skip")
    assert dataset.shares == [Share("first.json", 0.6, 4), Share("second.json", 2.0, 3)]
    assert [share.taken for share in dataset.shares] == [2, 6] and dataset.per_pass == 8 and len(dataset) == 7
    dataset.check()
    assert dataset.shares == [Share("first.json", 0.6, 4), Share("second.json", 2.0, 2)] and dataset.per_pass == 6
    assert [message.partition(":")[0] for message in dataset.skipped] == ["second.json, record 2 (id 'b2')"]
    assert Share("few", 0.01, 3).taken == 1 and Share("none", 2, 0).taken == 0
    with pytest.raises(BadRecordError, match=r"1 of 7 records is bad:\n  second.json, record 2 \(id 'b2'\): it has"):
        ConversationDataset(mix, make_processor(), 60).check()


def test_a_mix_is_checked_as_its_sources_are(files, pictures, make_processor):
    alone = [ConversationDataset(load_records(file, pictures), make_processor()).lengths() for file in files]
    assert ConversationDataset(mixed(files, pictures), make_processor()).lengths() == alone[0] + alone[1]


def test_files_of_the_same_name_are_told_apart(tmp_path, files):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "first.json"
    other.write_text(json.dumps([llava(None)]))
    opened = open_sources([str(files[0]), str(other), str(files[1])])
    assert [source.name for source in opened.values()] == [str(files[0]), str(other), "second.json"]
    with pytest.raises(BadRecordError, match=f"{other}, record 0 .id 'abc'.: the text has 1 <image>"):
        load_records(opened[str(other)])


def test_what_is_known_of_a_source_is_known_in_every_mix(files, pictures, make_processor, monkeypatch):
    surveyed, original = [], kept_survey.survey
    monkeypatch.setattr(kept_survey, "survey", lambda *a, **k: (surveyed.append(a[0].name), original(*a, **k))[1])
    for module in (row_check, records):
        monkeypatch.setattr(module, "KEPT_FROM", 1)
    first = ConversationDataset(mixed(files, pictures), make_processor()).lengths()
    assert ConversationDataset(mixed(files[::-1], pictures, (0.5, 3)), make_processor()).lengths() == first[4:] + first[:4]
    assert surveyed == ["first.json", "second.json"]
