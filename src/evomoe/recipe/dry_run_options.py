"""What a dry run looks into, as data. Needs no torch."""

from dataclasses import dataclass

from evomoe.recipe.options import MOST_RECORDS, check_whole
from evomoe.support.errors import OptionError
from evomoe.support.text import bytes_in


@dataclass(frozen=True)
class DryRunOptions:
    """What a dry run looks into.

    Attributes:
        dry_run: print what would train, parameter counts, steps, memory and disk space; load no weights.
        processes: with dry_run, how many processes the run will have.
        measure: with dry_run, take this many steps of each stage and tell how long the stage takes. It loads the weights.
        device_memory: with dry_run, what each device of the run has, such as 24GB; by default what this one has.
    """

    dry_run: bool = False
    processes: int = 1
    measure: int = 0
    device_memory: str = ""

    def check(self) -> None:
        """Raises OptionError if a value cannot be, or is for a dry run and there is none."""
        check_whole("processes", self.processes, 1, MOST_RECORDS)
        check_whole("measure", self.measure, 0, MOST_RECORDS)
        if self.device_memory and not bytes_in(self.device_memory):
            raise OptionError("device_memory", f"'{self.device_memory}' must be a number with its unit, such as 24GB.")
        if not self.dry_run:
            if self.processes != 1:
                raise OptionError("processes", "it goes with --dry-run; `torchrun` starts processes.")
            for option in ("measure", "device_memory"):
                if getattr(self, option):
                    raise OptionError(option, "it goes with --dry-run.")
