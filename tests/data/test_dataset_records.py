"""Records of datasets: image columns, splits, folders on disk and names of the hub."""

import pickle

import datasets
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from rows import llava

from evomoe.data.images import open_rgb
from evomoe.data.records import load_records


@pytest.fixture
def image_dataset(pictures) -> datasets.Dataset:
    rows = {
        "id": ["a", "b"],
        "images": [[str(pictures / "red.png")], [str(pictures / "red.png"), str(pictures / "green.jpg")]],
        "messages": [
            [{"role": "user", "content": "<image>" * count}, {"role": "assistant", "content": "yes"}] for count in (1, 2)
        ],
        "unused": [1, 2],
    }
    dataset = datasets.Dataset.from_dict(rows)
    return dataset.cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("saved", [False, True])
def test_image_columns_stay_undecoded(image_dataset, pictures, tmp_path, monkeypatch, saved):
    data, name = image_dataset, "the given dataset"
    if saved:  # the pictures move into the saved table
        image_dataset.save_to_disk(tmp_path / "saved")
        data, name = tmp_path / "saved", "saved"
        (pictures / "red.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda *_: pytest.fail("a picture was decoded"))
        records = load_records(data, on_bad_record="stop")
        images = records[1].images
    assert records[1].where == f"{name}, record 1 (id 'b')"
    assert {type(image) for image in images} == ({PngImageFile, JpegImageFile} if saved else {str})
    assert [open_rgb(image).size for image in images] == [(64, 48), (48, 48)]
    assert len(pickle.loads(pickle.dumps(records))) == 2


def test_single_image_column_and_its_bad_pictures(pictures):
    good, bad = (pictures / "red.png").read_bytes(), (pictures / "red.png").read_bytes()[:100]
    rows = [llava({"bytes": content, "path": None}) for content in (good, bad)]
    features = {"image": datasets.Image(), "id": datasets.Value("string")}
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features | {"conversations": [turn]}))
    records = load_records(dataset, on_bad_record="skip")
    assert len(records) == 1 and open_rgb(records[0].images[0]).size == (64, 48)
    assert "record 1 (id 'abc'): image in the image column cannot be decoded" in records.skipped[0]


def test_splits_of_saved_and_hub_datasets(tmp_path, monkeypatch):
    def one(word: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([llava(None, word)])

    datasets.DatasetDict({"train": one("from train"), "test": one("from test")}).save_to_disk(tmp_path / "saved")
    assert load_records(tmp_path / "saved")[0].turns[0].text == "from train"
    assert load_records(f"{tmp_path / 'saved'}:test")[0].turns[0].text == "from test"
    with pytest.raises(ValueError, match=r"no split 'dev'; name one as .*:<split>, of \['test', 'train'\]"):
        load_records(f"{tmp_path / 'saved'}:dev")
    (tmp_path / "plain").mkdir()
    with pytest.raises(ValueError, match="was not written by datasets.save_to_disk"):
        load_records(tmp_path / "plain")

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: one(f"{name} {split}"))
    assert load_records("owner/name")[0].turns[0].text == "owner/name train"
    assert load_records("owner/name:test")[0].turns[0].text == "owner/name test"
    assert load_records("owner/name:test")[0].where == "owner/name, record 0 (id 'abc')"


def test_a_dataset_that_the_hub_does_not_give_is_one_sentence_with_what_to_do(monkeypatch):
    def unreachable(name, split):
        raise ConnectionError("Couldn't reach 'no/such' on the Hub (LocalEntryNotFoundError)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    wanted = r"^no/such: there is no such file or folder, and the hub gives no such dataset \(Couldn't .* \(Local\w+\)\); name a local .*HF_HUB_OFFLINE=1"
    with pytest.raises(ValueError, match=wanted):
        load_records("no/such")
