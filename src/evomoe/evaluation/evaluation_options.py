"""How a checkpoint is evaluated, as data. Needs neither torch nor transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evomoe.evaluation.benchmark import PROTOCOLS, ProtocolName
from evomoe.evaluation.benchmarks import BENCHMARKS
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.options import MOST_RECORDS, MOST_WORKERS, ImageAspect, check_whole
from evomoe.recipe.run_folder import results_folder, template_options_of
from evomoe.support.errors import OptionError, no_such
from evomoe.support.names import check_folder


@dataclass(frozen=True)
class EvaluationOptions:
    """How a checkpoint is evaluated.

    Attributes:
        protocol: whose prompts and rules.
        batch_size: questions per batch; changes no answer.
        data_root: folder in which each benchmark has a folder of its name; without it, the hub is asked.
        limit: ask this many questions or a few more, a fixed random sample; questions that are scored together stay together. 0 asks
            all.
        output: folder for answers and results; runs/eval/NAME unless named, NAME from the checkpoint's path.
        dtype: precision of the weights.
        image_aspect: pad: pad pictures to a square first, as LLaVA-1.5 does; keep: do not; auto: where the processor would crop them.
        template_options: arguments of the model's chat template, as name=value, e.g. enable_thinking=true; by default those that a run
            trained the model with. Answers begin with thinking only if they ask for it.
        workers: processes that prepare batches.
        any_version: also score data that no known version of the benchmark has.
        trust_remote_code: run code from the model's repository.
    """

    protocol: ProtocolName = "official"
    batch_size: int = 16
    data_root: str | None = None
    limit: int = 0
    output: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    image_aspect: ImageAspect = "auto"
    template_options: NamedValues | None = None
    workers: int = 2
    any_version: bool = False
    trust_remote_code: bool = False

    def check(self, names: Sequence[str], argument: str = "benchmarks") -> None:
        """Raises OptionError if an option or a benchmark's name is wrong; the caller knows the names as ``argument``."""
        if self.data_root is not None:
            check_folder("data_root", self.data_root)
        if isinstance(names, str):
            raise OptionError(argument, f"it must be a list: ['{names}'].")
        for name in names:
            if name not in BENCHMARKS:
                raise OptionError(argument, f"{no_such(name, BENCHMARKS)}.")
        if len(set(names)) < len(names) or not names:
            raise OptionError(argument, "name each benchmark once, and at least one.")
        if self.protocol not in PROTOCOLS:
            raise OptionError("protocol", f"{no_such(self.protocol, PROTOCOLS)}.")
        check_whole("limit", self.limit, 0, hint="; 0 asks all questions")
        check_whole("batch_size", self.batch_size, 1, MOST_RECORDS)
        check_whole("workers", self.workers, 0, MOST_WORKERS)

    def of(self, checkpoint: str | Path) -> "EvaluationOptions":
        """The options for a checkpoint: where they name no arguments of its chat template, with those that it was trained with."""
        return self if self.template_options is not None else replace(self, template_options=template_options_of(checkpoint))

    def folder(self, checkpoint: str | Path) -> Path:
        """Where answers and results go."""
        return results_folder("eval", checkpoint, self.output)
