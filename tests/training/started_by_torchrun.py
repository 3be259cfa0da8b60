"""``evomoe`` as torchrun starts it in tests: what is to happen to it, as JSON, then what evomoe takes.

- "killed": the steps at whose ends its stages die.
- "like_gpus": CPUs are treated as accelerate treats GPUs. On CPUs it leaves DeepSpeed out, and shares no model out by FSDP.
"""

import json
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from stop_at import dying

from evomoe.cli import main
from evomoe.training.trainer import EvoMoETrainer

if __name__ == "__main__":
    _, wanted, *sys.argv[1:] = sys.argv
    settings = json.loads(wanted)
    if settings["killed"]:
        EvoMoETrainer.__init__ = dying(settings["killed"])
    if settings["like_gpus"]:
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    sys.exit(main())
