"""How large a study is: which model, which data, how many steps; the rows of the tables say the rest.

Implements: Table 7 (at both scales).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from evomoe.paper.tables.table import FINE_TUNE, MIX, WARM_UP, Row
from evomoe.recipe.data_mix import data_title
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.options import StageOptions
from evomoe.recipe.recipe import Recipe


@dataclass(frozen=True)
class MiniScale:
    """The study that runs on a laptop: the mini world, and the base model that was trained on it.

    Every row takes ``evolution_steps`` + ``routing_steps`` optimiser steps on the fine-tuning mix: a row with two stages there the
    former in the first and the latter in the second, a row with one stage all of them. Rows under the paper's protocol take more.

    Attributes:
        learning_rates: peak by what trains; chosen on the validation split, see docs/log.md.
        trainer: further TrainingArguments.
    """

    evolution_steps: int = 400
    routing_steps: int = 200
    batch_size: int = 32
    learning_rates: NamedValues = field(
        default_factory=lambda: {
            "text+projector": 1e-3,
            "text": 1e-3,
            "ffn": 2e-3,
            "router": 2e-2,
            "router+experts": 1e-3,
        }
    )
    trainer: NamedValues = field(default_factory=lambda: {"train_sampling_strategy": "random"})

    @property
    def whole(self) -> int:
        """Steps of a row in all."""
        return self.evolution_steps + self.routing_steps

    def new_records(self, row: Row) -> int:
        """How many records of the fine-tuning mix a longer row needs to see each once; 0 for what the mini world has anyway."""
        return 0 if row.longer == 1 else row.longer * self.whole * self.batch_size

    def recipe(self, row: Row, seed: int, base: Path, world: Path) -> Recipe:
        """The row's recipe with everything but the output folder."""
        from evomoe.model.routers import ROUTERS  # loads torch, for which a wrong name need not wait

        train = world / "train"
        data = {WARM_UP: str(train / "stage1.json"), FINE_TUNE: str(train / "stage2.json"), MIX: str(train / "both.json")}
        recipe = row.recipe
        whole = self.whole
        steps = dict.fromkeys(recipe.stages, whole)
        # Evolution on the warm-up mix stands for a part of Stage I, and takes no steps from the fine-tuning mix.
        early = [stage for stage in recipe.stages if recipe.stage(stage).data == WARM_UP]
        steps |= dict.fromkeys(early, self.evolution_steps)
        late = [stage for stage in recipe.stages if stage not in early]
        if len(late) > 1:
            steps |= {late[0]: self.evolution_steps if row.protocol == "equal" else whole, late[1]: self.routing_steps}
        elif row.protocol == "paper":
            steps |= dict.fromkeys(recipe.stages, whole + self.routing_steps)
        stages = {f"stage{stage}": self._options(recipe.stage(stage), row.longer * steps[stage], data) for stage in recipe.stages}
        moe = recipe.moe
        if not moe.router_options:  # the paper's sizes do not suit 96 units
            moe = replace(moe, router_options=ROUTERS[moe.router].Options.smaller)
        evolution = replace(recipe.evolution, seed=seed)
        return recipe.but(
            model=str(base),
            data=data[data_title(recipe.data)],
            image_root=str(world / "train" / "images"),
            seed=seed,
            max_length=512,
            packing=True,
            moe=moe,
            evolution=evolution,
            trainer=self.trainer,
            **stages,
        )

    def _options(self, options: StageOptions, steps: int, data: dict[str, str]) -> StageOptions:
        return replace(
            options,
            steps=round(steps * options.epochs),
            batch_size=self.batch_size,
            accumulation=1,
            learning_rate=self.learning_rates[options.train],
            data=data[data_title(options.data)] if options.data else None,
        )


MINI = MiniScale()
