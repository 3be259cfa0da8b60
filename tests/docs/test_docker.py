"""The Dockerfiles: what they copy is there and is enough to build the package; hadolint has nothing to say, where it is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_package_is_built_from_what_is_copied(file, tmp_path):
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", file.read_text(), flags=re.M) for name in line.split()]
    assert {*copied} == let_through
    for name in copied:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / name, ignore=ignored) if source.is_dir() else shutil.copy(source, tmp_path)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0 and list((tmp_path / "dist").glob("evomoe-*.whl")), done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_runs_evomoe_as_an_ordinary_user(file):
    text = file.read_text()
    assert (
        re.findall(r"^ENTRYPOINT (.*)$", text, flags=re.M) == ['["evomoe"]'] and "--uid 1000" in text and "\nUSER 1000\n" in text
    )


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint") or shutil.which(ROOT / ".venv-docker" / "bin" / "hadolint")
    if not hadolint:
        pytest.skip("needs hadolint: make docker-lint")
    done = subprocess.run([hadolint, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0 and len(FILES) == 2, done.stdout
