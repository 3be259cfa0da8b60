"""Sizes of the language model; in small, three widths.

Implements: Table 9 (all rows).
"""

from evomoe.paper.tables import rows
from evomoe.paper.tables.table import Row, Table

_PUBLISHED = {
    "Qwen2-0.5B": (
        (71.8, 56.1, 57.7, 39.7, 84.3, 1168.8, 57.9, 60.7),
        (72.0, 56.1, 58.0, 39.6, 84.4, 1170.1, 57.8, 60.9),
        (74.4, 57.4, 59.1, 42.4, 85.0, 1188.6, 58.2, 62.3),
    ),
    "Qwen-1.8B": (
        (76.3, 61.0, 62.1, 48.2, 86.4, 1286.7, 59.7, 65.4),
        (76.2, 61.0, 62.6, 48.0, 86.5, 1288.1, 59.4, 65.5),
        (76.9, 61.2, 63.3, 49.3, 87.1, 1315.6, 61.6, 66.5),
    ),
    "OpenChat-7B": (
        (78.2, 61.5, 62.9, 52.6, 86.8, 1355.5, 65.1, 67.8),
        (78.1, 61.5, 62.8, 52.7, 86.8, 1384.5, 64.8, 67.9),
        (78.9, 62.6, 63.8, 53.8, 87.3, 1391.5, 65.8, 68.8),
    ),
}
_METHODS = {"dense": rows.DENSE, "moe-tuning": rows.MOE_TUNING, "evomoe": rows.EVOMOE}
WIDTHS = {"narrow": "Qwen2-0.5B", "": "Qwen-1.8B", "wide": "OpenChat-7B"}
"""The language model that each width stands for."""

TABLE = Table(
    "9",
    "Sizes of the language model",
    tuple(
        Row(f"{width or 'middle'}-{method}", f"{width or 'middle'} ({size}): {method}", recipe, numbers, width=width)
        for width, size in WIDTHS.items()
        for (method, recipe), numbers in zip(_METHODS.items(), _PUBLISHED[size], strict=True)
    ),
    average=True,
    comparisons=tuple(
        (f"{width or 'middle'}-{method}", f"{width or 'middle'}-dense") for width in WIDTHS for method in ("moe-tuning", "evomoe")
    ),
    notes=("Three of the paper's five sizes stand beside our three widths; StableLM-1.6B and Phi-2 are in docs/parameters.md.",),
)
