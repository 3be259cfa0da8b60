"""The wheel, in an environment that knows nothing of the clone."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from tiny import write_workspace

from evomoe.support.version import __version__

ROOT = Path(__file__).parents[2]
LARGEST = 15_000_000
FIVE_LINES = """
import evomoe, sys
from transformers import AutoModelForImageTextToText
model = evomoe.upcycle(AutoModelForImageTextToText.from_pretrained("model"), num_experts=2, router="linear")
model.save_pretrained("sparse")
print(type(AutoModelForImageTextToText.from_pretrained("sparse")).__name__, evomoe.__file__)
"""


def run(*command: object, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Both distributions, the wheel made of what the sdist holds."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


def test_both_are_small_and_hold_what_runs_without_a_clone(dist):
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    assert sdist.stat().st_size < LARGEST and wheel.stat().st_size < LARGEST
    assert wheel.name == f"evomoe-{__version__}-py3-none-any.whl"
    held = set(zipfile.ZipFile(wheel).namelist())
    source = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "evomoe").rglob("*") if file.is_file()}
    assert {name for name in source if "__pycache__" not in name} <= held
    assert "evomoe/py.typed" in held and any(name.startswith("evomoe/demo/dense_vlm/") for name in held)
    assert not [name for name in held if not name.startswith(("evomoe/", f"evomoe-{__version__}.dist-info/"))]


def test_the_wheel_runs_where_there_is_no_clone(dist, tmp_path):
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    python, (wheel,) = environment / "bin" / "python", dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # torch and the others, but for this clone
    assert "usage: evomoe demo" in run(environment / "bin" / "evomoe", "demo", "--help", folder=tmp_path)
    write_workspace(tmp_path)
    kind, where = run(python, "-c", FIVE_LINES, folder=tmp_path).split()
    assert kind == "EvoMoELlavaForConditionalGeneration" and Path(where).is_relative_to(environment)
    run(environment / "bin" / "evomoe", "upcycle", "model", "converted", "--num-experts", "2", folder=tmp_path)
    assert (tmp_path / "converted" / "model.safetensors").is_file()


def test_the_version_stands_in_one_place_and_the_citation_says_the_same():
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_all_is_every_extra_for_users():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert everything == f"evomoe[{','.join(name for name in extras if name not in ('all', 'dev', 'deepspeed'))}]"
