"""Stage III, routing: the sparse model is assembled from the evolved experts, and only the router trains.

Implements: Section 3.1 (Stage III), Figure 2 (c).
"""

import dataclasses
import json
from pathlib import Path

from evomoe.analysis.diversity import check_experts_differ, check_not_collapsed
from evomoe.data.conversations import ConversationDataset
from evomoe.recipe import Recipe
from evomoe.stages.common import StageFolder, load_dense, stage_folder, train, trainer_options
from evomoe.stages.stage2_evolution import EXPERTS
from evomoe.upcycling import upcycle


def run(recipe: Recipe, source: Path | str, folder: StageFolder, dataset: ConversationDataset) -> None:
    """Dense model in ``source`` and the run's evolved experts -> sparse model in ``folder``.

    Raises:
        ValueError: all evolved experts are copies of expert 1 and the recipe does not allow that.
    """
    init_options = dict(recipe.init_options)
    if recipe.expert_init == "evolved" and 2 in recipe.stages and "experts" not in init_options:
        stage2 = stage_folder(recipe.output, 2)
        init_options["experts"] = str(stage2.path / EXPERTS)
        if not recipe.allow_collapsed_experts:
            schedule = trainer_options(recipe, 2).get("lr_scheduler_type", "cosine")
            check_not_collapsed(json.loads((stage2.path / "diversity.json").read_text()), schedule)
    model = upcycle(
        load_dense(recipe, source),
        moe_layers=recipe.placement(),
        expert_init=recipe.expert_init,
        init_options=init_options,
        seed=recipe.seed,
        **dataclasses.asdict(recipe.moe),
    )
    if recipe.stage3.train == "router" and not recipe.allow_collapsed_experts:
        check_experts_differ(model, recipe.expert_init)
    train(recipe, 3, model, folder, dataset)
