"""Routers whose outputs are permuted: does it matter which expert a token goes to?

Implements: Table 10 (all rows).
"""

import statistics
from collections.abc import Mapping
from typing import Any

from evomoe.analysis.intervention import Intervention
from evomoe.paper.tables import rows
from evomoe.paper.tables.comparison import paired_difference, with_interval
from evomoe.paper.tables.table import Row, Table
from evomoe.support.text import markdown_table

_SHUFFLES = (
    (76.2, 60.0, 62.3, 48.2, 86.4, 1288.5, 59.6, 65.3),
    (76.2, 60.1, 62.1, 48.2, 86.3, 1288.8, 59.4, 65.2),
    (76.2, 60.4, 62.6, 47.7, 86.5, 1290.2, 59.8, 65.4),
    (76.3, 60.6, 62.5, 48.3, 86.4, 1293.2, 59.5, 65.6),
    (76.1, 60.9, 62.6, 47.9, 86.5, 1289.9, 59.3, 65.5),
    (76.2, 60.6, 62.5, 47.8, 86.4, 1287.8, 59.6, 65.5),
    (76.1, 60.7, 62.6, 47.9, 86.3, 1286.9, 59.3, 65.4),
    (76.0, 60.1, 62.2, 47.9, 86.4, 12887.1, 59.2, 65.2),
)

_OWN = {"moe-tuning": "shuffle", "evomoe": "evomoe-shuffle"}
"""What the names of a row's shuffles begin with."""


def mean_of_shuffles(found: Mapping[str, Any]) -> str:
    """AVG under shuffled routers, as the mean of a seed's shuffles, less that with its own: mean over seeds and 95 % interval.

    Args:
        found: what ``evomoe table 10 --results`` kept.

    Returns:
        Markdown; empty if nothing can be compared.
    """
    lines = []
    for own, prefix in _OWN.items():
        shuffles = [row["seeds"] for name, row in found["rows"].items() if name.startswith(prefix)]
        seeds = [seed for seed in found["rows"].get(own, {"seeds": {}})["seeds"] if all(seed in row for row in shuffles)]
        if not shuffles or not seeds:
            continue
        changes = {
            seed: [row[seed]["average"] - found["rows"][own]["seeds"][seed]["average"] for row in shuffles] for seed in seeds
        }
        all_changes = [change for of_seed in changes.values() for change in of_seed]
        interval = with_interval(
            *paired_difference([statistics.mean(of_seed) for of_seed in changes.values()], [0.0] * len(seeds))
        )
        below = sum(change < 0 for change in all_changes)
        lines.append([own, str(len(shuffles)), interval, f"{below} of {len(all_changes)}"])
    header = ["row", "shuffles", "their mean, less own routers", "below own"]
    return markdown_table(header, lines) if lines else ""


TABLE = Table(
    "10",
    "Shuffled routers",
    (
        Row("moe-tuning", "MoE-tuning", rows.MOE_TUNING, (76.2, 61.0, 62.6, 48.0, 86.5, 1288.1, 59.4, 65.5)),
        *(
            Row(f"shuffle{n}", f"MoE-tuning, shuffle {n}", rows.MOE_TUNING, numbers, Intervention(shuffle=n))
            for n, numbers in enumerate(_SHUFFLES, 1)
        ),
        Row("evomoe", "EvoMoE", rows.EVOMOE),
        *(
            Row(f"evomoe-shuffle{n}", f"EvoMoE, shuffle {n}", rows.EVOMOE, intervention=Intervention(shuffle=n))
            for n in (1, 2, 3)
        ),
    ),
    average=True,
    baseline="moe-tuning",
    comparisons=tuple((f"evomoe-shuffle{n}", "evomoe") for n in (1, 2, 3)),
    supplement=mean_of_shuffles,
    notes=(
        "MME of the eighth shuffle is printed as 12887.1.",
        "The paper shuffles MoE-tuning alone; the rows of EvoMoE are ours.",
    ),
    seeds=3,
)
