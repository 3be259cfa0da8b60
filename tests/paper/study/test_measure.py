"""Each scoring asks the model that it names, in the way that it names."""

from pathlib import Path

import torch

from evomoe.analysis.intervention import Intervention
from evomoe.conversion.upcycling import upcycle
from evomoe.model.loading import load_model, load_processor
from evomoe.paper.study import measure
from evomoe.paper.study.task import Scoring


def test_each_scoring_asks_the_model_that_it_names(base, world, tmp_path, monkeypatch):
    """Experts alone against models all of whose experts are that one; shuffles; splits and limits."""
    monkeypatch.setattr(measure, "LONGEST", 8)
    torch.manual_seed(0)
    options = {"num_experts": 4, "router": "linear", "moe_layers": "all", "expert_init": "noise", "init_options": {"std": 2.0}}

    def written(only: int | None = None) -> Path:
        model = upcycle(load_model(base), **options)
        if only is not None:
            for block in model.moe_blocks.values():
                for expert in block.experts:
                    expert.load_state_dict(block.experts[only].state_dict())
        folder = tmp_path / f"expert{only}"
        model.save_pretrained(folder)
        load_processor(base).save_pretrained(folder)
        return folder

    def answers(model: Path, split="test", limit=0, **changes) -> dict:
        intervention = Intervention(**changes)
        return measure.score_model(load_model(model), model, world, split, limit, intervention)["answers"]

    whole = written()
    own, alone = answers(whole), [answers(whole, expert=number) for number in range(4)]
    for number, given in enumerate(alone):
        assert given == answers(written(number)) and given not in alone[:number] and given != own
    first, second = (answers(whole, shuffle=seed) for seed in (1, 2))
    assert own != first != second != own
    assert answers(whole, shuffle=1) == first
    few, other = answers(whole, limit=1), answers(whole, split="validation")
    for name, given in own.items():
        assert {*few[name]} < {*given} and len(few[name]) >= 1, name
    assert other != own


def test_a_scoring_hands_over_all_that_it_names(base, world, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "score_model", lambda model, *how: asked.append(how) or {})
    scoring = Scoring(base, world, "validation", 3, Intervention(shuffle=2))
    scoring.run(tmp_path)
    assert asked == [(base, world, "validation", 3, Intervention(shuffle=2))] and scoring.done(tmp_path)
