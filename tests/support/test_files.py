"""Files that have their name when they are whole, are nobody else's by a link, and say so when there is no room."""

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomoe.support.files import DiskError, ShardWriter, naming, new_folder, room_for, write_tensors, write_text

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "tensors": lambda path: write_tensors(path, {"x": torch.zeros(2)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_partial_file_that_is_a_link_is_not_followed(tmp_path, kind):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out.partial").symlink_to(tmp_path / "mine")
    WRITERS[kind](tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_partial_folder_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "out.partial").symlink_to(tmp_path / "mine")
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "new", "new")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    assert (tmp_path / "out" / "new").is_file() and not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_and_texts_have_the_same_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        for kind, write in WRITERS.items():
            write(tmp_path / kind)
        with new_folder(tmp_path / "folder") as folder, ShardWriter(folder) as shards:
            write_text(folder / "config.json", "{}")
            save_file({"x": torch.zeros(2)}, folder / "saved.safetensors")  # as transformers does
            shards.add({"x": torch.zeros(2)})
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 5 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


LIMITED = """
import json, resource, sys
import torch
from pathlib import Path
from evomoe.support.files import DiskError, naming, write_tensors, write_text
from transformers import PreTrainedTokenizerFast
sys.path.insert(0, "tests")
from tiny import make_llava, make_tokenizer
folder, tokenizer, model = Path(sys.argv[1]), make_tokenizer(), make_llava()
def torch_save(path): torch.save({"x": torch.zeros(10000)}, path)
def tokenizer_save(path): tokenizer.save_pretrained(path)
def model_save(path): model.save_pretrained(path)
def text(path): write_text(path, "x" * 100000)
def tensors(path): write_tensors(path, {"x": torch.zeros(10000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (torch_save, tokenizer_save, model_save, text, tensors):
    try:
        with naming(folder / write.__name__):
            write(folder / write.__name__)
    except DiskError as error:
        print(error)
"""


def test_whatever_library_has_no_room_the_file_is_named_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / name) for name in ("torch_save", "tokenizer_save", "model_save", "text", "tensors")
    ], done.stderr
    reason = "(File too large|there is no room for all of it, or it is larger than files may be)"
    assert all(re.search(f"{reason}. It was not written: make room, or name another place.$", line) for line in lines)


def test_other_errors_are_not_taken_for_those_of_a_disk(tmp_path):
    with pytest.raises(ValueError, match="^mine$"), naming(tmp_path):
        raise ValueError("mine")
    with pytest.raises(FileNotFoundError), room_for(tmp_path):
        Path(tmp_path / "none").read_text()
    with pytest.raises(DiskError, match="No space left"), room_for(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
