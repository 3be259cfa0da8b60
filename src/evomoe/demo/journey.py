"""``evomoe demo``: Stages II and III on easy-VQA, the fair control, the scores, the report."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.interventions import only_expert
from evomoe.analysis.report import ReportInput, write_report
from evomoe.analysis.routing import routing_statistics
from evomoe.data import easy_vqa
from evomoe.evaluation import Question, Result
from evomoe.evaluation.benchmarks.easy_vqa import BENCHMARK, questions
from evomoe.evaluation.generation import Prompts, ask, evaluate
from evomoe.evaluation.reports import score_table
from evomoe.model.accounting import count_parameters
from evomoe.model.loading import load_model, load_processor
from evomoe.model.sparse_model import is_sparse
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.options import MoEOptions, StageOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import RunFolder
from evomoe.support.device import best_device, moved, prepare
from evomoe.support.errors import OptionError
from evomoe.support.files import write_text
from evomoe.support.names import check_output_folder
from evomoe.training.run import run
from evomoe.training.trainable import set_trainable

DENSE_MODEL = Path(__file__).parent / "dense_vlm"

EVOLUTION_STEPS, ROUTING_STEPS = 250, 150


def demo_recipe(output: Path) -> Recipe:
    """Stages II and III of the demo."""
    stage = StageOptions(
        learning_rate=1e-3,
        batch_size=32,
        accumulation=1,
        trainer={"train_sampling_strategy": "random", "save_steps": 50},
    )
    return Recipe(
        model=str(DENSE_MODEL),
        data=str(output / "data" / "train_full.json"),
        output=str(output),
        stages=(2, 3),
        moe=MoEOptions(router_options={"hypernet_width": 16, "rank": 4}),
        stage1=dataclasses.replace(stage, steps=EVOLUTION_STEPS + ROUTING_STEPS, train="text+projector"),
        stage2=dataclasses.replace(stage, steps=EVOLUTION_STEPS, train="ffn"),
        stage3=dataclasses.replace(stage, steps=ROUTING_STEPS, train="router"),
        max_length=128,
        packing=True,
    )


def control_recipe(output: Path) -> Recipe:
    """The fair control: the dense model fine-tuned on the same data for as many steps as Stages II and III together."""
    return demo_recipe(output).but(output=str(output / "control"), stages=(1,))


def run_demo(output: str | Path = "runs/demo", resume: bool = True) -> str:
    """Runs the demo and returns its table.

    Args:
        output: run folder. If it holds a finished run, a new folder beside it is taken.
        resume: go on with an unfinished run there.
    """
    begin = time.monotonic()
    check_output_folder(output)
    folder = _free_folder(Path(output))
    if folder.exists() and not resume:
        raise OptionError(
            "output", f"{folder} holds an unfinished demo; leave out `resume=False` to go on with it, or name another folder."
        )
    prepare(best_device())
    recipe = demo_recipe(folder)
    sparse_folder, control_folder = _run(recipe), _run(control_recipe(folder), "dense control")
    report = _measure(folder, sparse_folder, control_folder)
    write_report(RunFolder(folder), recipe, report)
    return (
        f"{report.scores}\n\nReport with pictures: {RunFolder(folder).report}\nSparse model: {sparse_folder}\n"
        f"Took {time.monotonic() - begin:.0f} s."
    )


def _run(recipe: Recipe, label: str = "") -> Path:
    data = Path(data_title(recipe.data))
    if not data.is_file():
        data.parent.mkdir(parents=True, exist_ok=True)
        easy_vqa.export("train", data, "full")
    return run(recipe, resume="if begun", report=False, label=label)


def _measure(folder: Path, sparse_folder: Path, control_folder: Path) -> ReportInput:
    """Scores all models on the test split, and looks at routers and experts."""
    device = best_device()
    dense, control, sparse = (moved(load_model(path), device) for path in (DENSE_MODEL, control_folder, sparse_folder))
    assert is_sparse(sparse)
    asked = questions(easy_vqa.questions("test"))
    prompts = Prompts([*map(ask, asked)], load_processor(sparse_folder), keep=True)
    scores = _Scores(folder / "scores.json", asked, prompts)
    scores.add("dense, as shipped (Stage I)", dense)
    scores.add("dense, fine-tuned (control)", control)
    for expert in range(sparse.config.moe.num_experts):
        with only_expert(sparse, expert):
            scores.add(f"expert {expert + 1} alone", sparse)
    scores.add("EvoMoE", sparse)
    layers = sparse.config.moe.moe_layers
    parameters = {
        "dense, as shipped": count_parameters(dense, []),
        "dense, fine-tuned (control)": count_parameters(control, set_trainable(control, "text+projector", layers)),
        "EvoMoE, Stage II": count_parameters(dense, set_trainable(dense, "ffn", layers)),
        "EvoMoE, Stage III": count_parameters(sparse, set_trainable(sparse, "router", layers)),
    }
    probe = [prompts[number].inputs.to(device) for number in range(0, len(prompts), 20)]
    return ReportInput(
        parameters,
        routing_statistics(sparse, probe),
        f"{sum(len(inputs['input_ids']) for inputs in probe)} questions of the test split",
        score_table("easy-VQA test", scores.by_name),
        f"The control is the shipped model fine-tuned densely on the same data for {EVOLUTION_STEPS + ROUTING_STEPS} steps, as "
        f"many as Stage II ({EVOLUTION_STEPS}) and Stage III ({ROUTING_STEPS}) together. One seed; docs/log.md has the spread.",
    )


class _Scores:
    """Scores by model name, kept in a file, so that an interrupted demo does not score a model twice."""

    def __init__(self, path: Path, asked: Sequence[Question], prompts: Prompts) -> None:
        self.path, self.asked, self.prompts = path, asked, prompts
        stored = json.loads(path.read_text()) if path.is_file() else {}
        self.by_name = {name: Result(**values) for name, values in stored.items()}

    def add(self, name: str, model: PreTrainedModel) -> None:
        if name not in self.by_name:
            self.by_name[name] = evaluate(model, BENCHMARK, self.asked, self.prompts, name)
            write_text(
                self.path,
                json.dumps({n: score.as_dict() for n, score in self.by_name.items()}, indent=1) + "\n",
            )


def _free_folder(wanted: Path) -> Path:
    """``wanted``, or ``wanted``-2, -3 ... if a finished run is there."""
    folder, number = wanted, 1
    while RunFolder(folder).report.is_file():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
