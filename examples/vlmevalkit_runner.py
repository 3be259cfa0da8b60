"""Runs VLMEvalKit's own run.py with one more model in its table: any checkpoint, dense or sparse.

VLMEvalKit takes no plug-ins and is not on PyPI; its pins clash with lmms-eval's, so give it an environment of its own. Here::

    git clone https://github.com/open-compass/VLMEvalKit
    python -m venv .venv-vlmevalkit && .venv-vlmevalkit/bin/pip install -e ./VLMEvalKit rouge-score .
    .venv-vlmevalkit/bin/python examples/vlmevalkit_runner.py --vlmevalkit VLMEvalKit --pretrained DIR -- \
        --data MME MMBench_DEV_EN --judge exact_matching

rouge-score is missing from its requirements. What follows ``--`` goes to run.py as it is. Without ``--judge exact_matching``
it sends answers that it cannot read to gpt-4o-mini, if there is a key. When a benchmark fails, run.py logs the error, goes on
and ends with status 0: read its summary. Importing vlmeval turns the checks of TLS certificates off for the process.

Prompts and scores are VLMEvalKit's, one question at a time; `evomoe eval --protocol vlmevalkit` asks in batches. It has no
VQAv2. From the official rules depart: GQA ("yes." is wrong), ScienceQA (the letter anywhere among the last words), TextVQA
("15." is not "15"), POPE (one F1 over all questions, no yes-ratio), MME ("yes" or "no" anywhere). MMBench's rule is the official
one. Tried with commit e8e78f05 (2026-08-18) in one process on a CPU; not tried: a GPU, torchrun, benchmarks of several rounds.
"""

import argparse
import hashlib
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from evomoe.data.records import IMAGE_MARK, Turn
from evomoe.evaluation.encode_once import EncodeOnce
from evomoe.evaluation.generation import Answerer, Asked, Prompts
from evomoe.evaluation.pictures import FilePicture
from evomoe.model.loading import load_model, load_processor


def register(options: argparse.Namespace) -> None:
    """Puts the model into VLMEvalKit's table; it is loaded when the first question comes."""
    from vlmeval.config import supported_VLM
    from vlmeval.vlm.base import BaseModel

    class EvoMoE(BaseModel):
        INTERLEAVE = True
        allowed_types = ["text", "image"]

        def __init__(self) -> None:
            super().__init__()
            model = load_model(options.pretrained, options.dtype).to(options.device)
            self.processor, self.paths = load_processor(options.pretrained), {}
            self.answerer = Answerer(model, options.max_new_tokens, encode_once=False)
            self.once, self.stack = EncodeOnce(model, options.remembered), ExitStack()
            self.stack.enter_context(self.once.active())  # for good: what an Answerer encodes once is forgotten after each call

        def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            pictures = tuple(self.picture(part["value"]) for part in message if part["type"] == "image")
            text = "".join(f"{IMAGE_MARK}\n" if part["type"] == "image" else part["value"] for part in message)
            self.once.keys = [picture.key for picture in pictures]
            prompts = Prompts([Asked(f"{dataset}", (Turn("user", text),), pictures)], self.processor)
            (answers,) = self.answerer.answer(prompts, label=None)
            return answers[0]

        def picture(self, path: str) -> FilePicture:
            """By its contents: VLMEvalKit writes a file for every question, though many are about the same picture."""
            contents = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
            return FilePicture(self.paths.setdefault(contents, path))

    supported_VLM[options.name] = EvoMoE


def main() -> None:
    parser = argparse.ArgumentParser(description="VLMEvalKit with any checkpoint of evomoe; its own options follow --.")
    parser.add_argument("--vlmevalkit", type=Path, required=True, help="a clone of VLMEvalKit")
    parser.add_argument("--pretrained", required=True, help="folder or hub name, dense or sparse")
    parser.add_argument("--name", default="evomoe", help="in VLMEvalKit's results, which it reuses by name: one per checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument(
        "--remembered", type=int, default=64, help="pictures whose features are kept; more where rows share one far apart"
    )
    parser.add_argument("run_options", nargs="*", help="options of run.py, after --")
    options = parser.parse_args()
    run = options.vlmevalkit.resolve() / "run.py"
    if not run.is_file():
        parser.error(f"--vlmevalkit {options.vlmevalkit}: no run.py there; git clone https://github.com/open-compass/VLMEvalKit")
    sys.path.insert(0, str(run.parent))
    register(options)
    sys.argv = [str(run), "--model", options.name, *options.run_options]
    runpy.run_path(str(run), run_name="__main__")


if __name__ == "__main__":
    main()
