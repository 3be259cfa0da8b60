"""What a run needs, as docs/machines.md says it: the example is the table's bytes times counted weights."""

import re
from dataclasses import asdict
from pathlib import Path

from evomoe.model.accounting import count_parameters
from evomoe.model.loading import empty_models, load_config
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.placement import parse_placement
from evomoe.training.trainable import names_in

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
EVOLVING = 3
"""Experts that follow expert 1."""


def bytes_per_weight() -> list[tuple[int, int]]:
    """The page's table: held, trained, evolving; in float32 and in bfloat16."""
    found = re.findall(r"^\| (?:each weight|Stage II: each).* \| (\d+) bytes \| (\d+) bytes \|$", PAGE, flags=re.M)
    return [(int(one), int(other)) for one, other in found]


def test_the_example_is_the_table_times_the_counts():
    config = load_config(str(ROOT / "docs" / "table8" / "stablelm-2-1.6b.json"))
    dense, sparse = empty_models(config, parse_placement("alternating"), **asdict(MoEOptions()))
    layers = sparse.config.moe.moe_layers
    text, projector, ffn = (names_in(dense, part, layers) for part in ("text", "projector", "ffn"))
    warmup, evolution = count_parameters(dense, {*text, *projector}), count_parameters(dense, ffn)
    routing = count_parameters(sparse, names_in(sparse, "router", layers))
    held, trained, evolving = bytes_per_weight()
    expected = []
    for precision in (0, 1):
        at_rest = [count.total * held[precision] + count.trained * trained[precision] for count in (warmup, evolution, routing)]
        at_rest[1] += EVOLVING * evolution.trained * evolving[precision]
        expected.append([f"{size / 1e9:.1f}" for size in at_rest])
    rows = re.findall(r"^\| I{1,3}: .* \| ([\d.]+) GB \| ([\d.]+) GB \|$", PAGE, flags=re.M)
    assert [list(column) for column in zip(*rows, strict=True)] == expected
