"""Which reading of Eq. 1, which stop_fraction and which gate make experts that are diverse, good alone, and worth routing to?

The comparison behind the defaults, on easy-VQA, judged on pictures held out of the training split; the test split is not
touched. Within a seed all variants share one Stage II: evolution does not change what expert 1 learns.

    python benchmarks/compare_evolution.py --seeds 0 1 2 --output runs/compare_evolution
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from evomoe import upcycle
from evomoe.analysis.interventions import only_expert
from evomoe.analysis.routing import routing_statistics
from evomoe.data import easy_vqa
from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.records import load_records
from evomoe.demo.journey import DENSE_MODEL, demo_recipe
from evomoe.evaluation.benchmarks.easy_vqa import BENCHMARK
from evomoe.evaluation.benchmarks.easy_vqa import questions as questions_of
from evomoe.evaluation.generation import Prompts, ask, evaluate
from evomoe.model.loading import load_model, load_processor
from evomoe.recipe.options import EvolutionOptions
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import StageFolder
from evomoe.support.device import best_device, prepare
from evomoe.support.files import write_text
from evomoe.support.text import markdown_table
from evomoe.training.arguments import training_arguments
from evomoe.training.callbacks import EvolutionCallback
from evomoe.training.collapse import diversity_report
from evomoe.training.trainable import set_trainable
from evomoe.training.trainer import EvoMoETrainer

VARIANTS = {
    "scaled_update": EvolutionOptions("scaled_update"),
    "ema": EvolutionOptions("ema"),
    "ema, stop 0.5": EvolutionOptions("ema", stop_fraction=0.5),
    "lookback": EvolutionOptions("lookback"),
    "literal": EvolutionOptions("literal"),
}
GATES = ("straight_through", "probability")


@dataclass
class Options:
    """Options of the comparison.

    Attributes:
        output: folder for the results, one JSON per seed.
        seeds: one run each.
        held_out: training pictures kept for judging.
    """

    output: Path = Path("runs/compare_evolution")
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: int = 300


class Comparison:
    """The data of one seed, and training with them."""

    def __init__(self, options: Options, seed: int) -> None:
        self.folder = options.output / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe: Recipe = demo_recipe(self.folder).but(seed=seed)
        self.processor = load_processor(DENSE_MODEL)
        questions = easy_vqa.questions("train")
        judged = set(sorted({question.image_path for question in questions})[: options.held_out])
        records = [record for record in easy_vqa.train_records("full", seed) if record["image"] not in judged]
        self.dataset = ConversationDataset(load_records(records), self.processor, self.recipe.max_length)
        self.asked = questions_of(question for question in questions if question.image_path in judged)
        self.prompts = Prompts([*map(ask, self.asked)], self.processor, keep=True)
        self.layers = [0, 2, 4, 6]

    def trainer(self, stage: int, model, **fields) -> EvoMoETrainer:
        set_trainable(model, self.recipe.stage(stage).train, self.layers)
        recipe = self.recipe.but(trainer={"save_strategy": "no"})
        arguments = training_arguments(recipe, stage, StageFolder(self.folder), len(self.dataset))
        collator = Collator(self.processor)
        return EvoMoETrainer(
            model=model, args=arguments, train_dataset=self.dataset, data_collator=collator, moe_layers=self.layers,
            stage=f"stage {stage}", processing_class=self.processor, **fields,
        )  # fmt: skip

    def score(self, model) -> float:
        return evaluate(model, BENCHMARK, self.asked, self.prompts).score


def run_seed(options: Options, seed: int) -> None:
    """Stage II once, then Stage III for every variant and gate; results go to ``seed<N>.json``."""
    path = options.output / f"seed{seed}.json"
    if path.is_file():
        return
    torch.manual_seed(seed)
    comparison = Comparison(options, seed)
    model = load_model(DENSE_MODEL)
    result = {"dense, Stage I": comparison.score(model)}
    names = list(VARIANTS)
    trainer = comparison.trainer(2, model, evolution=dataclasses.replace(VARIANTS[names[0]], seed=seed))
    callbacks = {names[0]: trainer.evolution}
    for name in names[1:]:
        callbacks[name] = EvolutionCallback(trainer, dataclasses.replace(VARIANTS[name], seed=seed), comparison.layers)
        trainer.add_callback(callbacks[name])
    trainer.train()
    result["expert 1 alone"] = comparison.score(model)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = {}
    for name, callback in callbacks.items():
        experts, report = callback.experts.expert_tensors(), diversity_report(callback.experts)
        row = {"distance": list(report["relative_distance"].values()), "gates": {}}
        for gate in GATES:
            dense = load_model(DENSE_MODEL)
            dense.load_state_dict(trained)
            moe = dataclasses.asdict(dataclasses.replace(comparison.recipe.moe, gate=gate))
            sparse = upcycle(dense, expert_init="evolved", init_options={"experts": experts}, seed=seed, **moe)
            probe = [comparison.prompts[number].inputs for number in range(0, len(comparison.prompts), 8)]
            if "alone" not in row:
                row["alone"] = []
                for expert in range(1, 4):
                    with only_expert(sparse, expert):
                        row["alone"].append(comparison.score(sparse))
                row["cka"] = routing_statistics(sparse, probe).means()["cka"]
            comparison.trainer(3, sparse).train()
            effective = routing_statistics(sparse, probe).metrics()["effective_experts"]
            row["gates"][gate] = {"score": comparison.score(sparse), "effective": statistics.mean(effective)}
        rows[name] = row
    write_text(path, json.dumps(result | {"variants": rows}, indent=1) + "\n")


def table(options: Options) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    runs = [json.loads((options.output / f"seed{seed}.json").read_text()) for seed in options.seeds]

    def spread(values: Sequence[float], digits: int = 1) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"

    header = ["rule", "distance of experts 2, 3, 4", "output CKA", "experts 2, 3, 4 alone, %"]
    header += [f"EvoMoE, {gate}, %" for gate in GATES] + [f"effective experts, {gate}" for gate in GATES]
    rows = []
    for name in VARIANTS:
        variant = [run["variants"][name] for run in runs]
        distance = [statistics.mean(v["distance"][n] for v in variant) for n in range(3)]
        row = [name, ", ".join(f"{d:.2g}" for d in distance), f"{statistics.mean(v['cka'] for v in variant):.4f}"]
        row.append(", ".join(spread([v["alone"][n] for v in variant]) for n in range(3)))
        row += [spread([v["gates"][gate]["score"] for v in variant], 2) for gate in GATES]
        row += [spread([v["gates"][gate]["effective"] for v in variant], 2) for gate in GATES]
        rows.append(row)
    heads = [f"{key}: {spread([run[key] for run in runs], 2)} %" for key in ("dense, Stage I", "expert 1 alone")]
    return "\n\n".join([f"Seeds {', '.join(map(str, options.seeds))}. {'; '.join(heads)}.", markdown_table(header, rows)])


def main(options: Options) -> None:
    prepare(best_device())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    begin = time.monotonic()
    for seed in options.seeds:
        run_seed(options, seed)
    print(table(options))
    print(f"\n{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Options))
