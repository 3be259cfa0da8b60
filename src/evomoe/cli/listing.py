"""What ``evomoe list`` prints: the rows of a table with the first sentence of each row's documentation, and its options."""

import inspect
from dataclasses import fields
from importlib import import_module

from evomoe.recipe.options import STAGES
from evomoe.recipe.row_options import describe_options

TABLES = {
    "routers": ("evomoe.model.routers", "ROUTERS"),
    "inits": ("evomoe.conversion.expert_init", "INITS"),
    "losses": ("evomoe.model.aux_losses", "AUX_LOSSES"),
    "gates": ("evomoe.model.routing", "GATES"),
    "rules": ("evomoe.training.evolution", "RULES"),
    "benchmarks": ("evomoe.evaluation", "BENCHMARKS"),
    "recipes": ("evomoe.recipe.named_recipes", "RECIPES"),
    "tables": ("evomoe.paper.tables", "TABLES"),
}


def describe_table(what: str) -> str:
    """One line per row of a table: its name and what it is."""
    module, name = TABLES[what]
    table = getattr(import_module(module), name)
    width = max(map(len, table))
    return "\n".join(f"{row:<{width}}  {_summary(what, value)}" for row, value in table.items())


def _summary(what: str, value) -> str:
    if what == "recipes":
        base = import_module("evomoe.recipe.named_recipes").EVOMOE
        changed = [f.name for f in fields(value.moe) if getattr(value.moe, f.name) != getattr(base.moe, f.name)]
        experts = f", experts from {value.expert_init}" if 3 in value.stages else ""
        moe = "".join(f", {name} {getattr(value.moe, name)}" for name in changed)
        stages = " ".join(f"{stage} ({STAGES[stage]})" for stage in value.stages)
        return f"stages {stages}{experts}{moe}"
    if what == "tables":
        return value.heading
    if what == "benchmarks":
        return value.summary
    summary = (inspect.getdoc(getattr(value, "make", value)) or "").partition("\n")[0].strip()
    options = getattr(value, "Options", None)
    return f"{summary} Options: {describe_options(options)}" if options else summary
