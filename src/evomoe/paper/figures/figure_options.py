"""What a figure is drawn of, as data. Needs neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path

from evomoe.analysis.probe_options import ProbeOptions
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.support.errors import OptionError
from evomoe.support.names import check_output_folder, refuse_missing


@dataclass(frozen=True)
class FigureOptions(ProbeOptions):
    """What a figure is drawn of.

    Attributes:
        data: 1b, 5, slots: the records that the routers are watched on, as `evomoe analyze` takes them; slots shows questions of
            benchmarks without it.
        output: folder for the pictures (PNG, SVG) and their numbers (JSON); runs/plot/NAME unless named, NAME from the checkpoint's path.
        against: a second checkpoint, drawn beside the first.
        names: what the checkpoints are called in the picture; by their folders unless named.
        benchmarks: 1a: what the model is scored on, slots: whose questions are shown, see `evomoe list benchmarks`.
        data_root: 1a, slots: folder in which each benchmark has a folder of its name; without it, the hub is asked.
        limit: 1a: ask this many questions of each benchmark, a fixed random sample; 0 asks all.
        scores: 1a: JSON with scores known already, {checkpoint: {"own": 65.5, "shuffled": [65.3, ...]}}, such as the figure's own.
    """

    data: str = ""
    output: str = ""
    against: str | None = None
    names: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ("easy-vqa",)
    data_root: str | None = None
    limit: int = 0
    scores: str | None = None

    def checkpoints(self, checkpoint: str) -> dict[str, str]:
        """The checkpoints by their names in the picture.

        Raises:
            OptionError: there are more or fewer names than checkpoints, or two alike.
        """
        chosen = [checkpoint] if self.against is None else [checkpoint, self.against]
        names = list(self.names) or [_short(one) for one in chosen]
        if not self.names and len(set(names)) < len(names):
            names = chosen
        if len(names) != len(chosen) or len(set(names)) < len(names):
            raise OptionError("names", f"give each of the {len(chosen)} checkpoints one name of its own.")
        return dict(zip(names, chosen, strict=True))

    def evaluation(self) -> EvaluationOptions:
        """The same options as ``evomoe eval`` has them."""
        return EvaluationOptions(
            batch_size=self.batch_size,
            data_root=self.data_root,
            limit=self.limit,
            dtype=self.dtype,
            image_aspect=self.image_aspect,
            trust_remote_code=self.trust_remote_code,
        )

    def check_figure(self, figure: str) -> None:
        """Raises OptionError if an option that this figure needs is wrong, ValueError if a checkpoint or data are not there."""
        if figure == "1a" or figure == "slots" and not self.data:
            self.evaluation().check(self.benchmarks)
            if self.scores is not None and not Path(self.scores).is_file():
                raise OptionError("scores", f"there is no file {self.scores}.")
        else:
            self.check()
        check_output_folder(self.output)
        if self.against is not None and self.scores is None:
            refuse_missing(self.against)


def _short(checkpoint: str) -> str:
    """A run's name for a model in its folder, else the folder's or repository's own name."""
    parts = Path(checkpoint).resolve().parts if Path(checkpoint).exists() else tuple(checkpoint.split("/"))
    return parts[-3] if len(parts) > 2 and parts[-1] == "model" and parts[-2].startswith("stage") else parts[-1]
