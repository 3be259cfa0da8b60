"""An intervention as data, and applied to a model: its parts together, and everything as before after the block."""

import pytest
import torch
from tiny import inputs_for, make_llava

from evomoe import upcycle
from evomoe.analysis.intervention import Intervention
from evomoe.analysis.interventions import applied, only_expert, shuffled_routers
from evomoe.support.errors import OptionError

ANY = {"expert_init": "partition", "router": "anyexperts", "num_experts": 16, "num_experts_per_tok": 8}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_for(model, (1,))).logits


def sparse(**options):
    torch.manual_seed(0)
    return upcycle(make_llava(), **options).eval()


def test_only_what_is_changed_is_named():
    assert Intervention().changes() == {}
    assert Intervention(expert=0, experts_per_token=4.8).changes() == {"expert": 0, "experts_per_token": 4.8}


@pytest.mark.parametrize(
    ("intervention", "by_hand"),
    [
        (Intervention(expert=2), lambda model: only_expert(model, 2)),
        (Intervention(shuffle=3), lambda model: shuffled_routers(model, 3)),
    ],
)
def test_an_intervention_is_what_its_part_is(intervention, by_hand):
    model = sparse(router="linear", expert_init="noise", init_options={"std": 0.5})
    own = logits(model)
    with applied(model, intervention) as changed:
        given = logits(changed)
    with by_hand(model):
        assert torch.equal(given, logits(model)) and not torch.equal(given, own)
    assert torch.equal(logits(model), own)
    with applied(model, Intervention()):
        assert torch.equal(logits(model), own)


def test_a_dense_model_answers_as_it_is_and_has_no_routers_to_change():
    dense = make_llava().eval()
    with applied(dense, Intervention()) as same:
        assert same is dense
    with (
        pytest.raises(OptionError, match="LlavaForConditionalGeneration is not an EvoMoE model"),
        applied(dense, Intervention(expert=0)),
    ):
        pass


def test_a_number_of_experts_is_set_for_the_block_alone():
    model = sparse(router="linear", expert_init="noise", init_options={"std": 0.5}, num_experts_per_tok=1, gate="normalised")
    own, written = logits(model), model.config.evomoe
    with pytest.raises(RuntimeError, match="within"), applied(model, Intervention(experts_per_token=3)):
        assert model.config.moe.num_experts_per_tok == 3 and not torch.equal(logits(model), own)
        raise RuntimeError("within")
    assert model.config.evomoe == written and torch.equal(logits(model), own)


def test_a_budget_is_measured_and_goes_with_the_shuffle():
    model, ran = sparse(**ANY), []
    before = [block.router.options for block in model.moe_blocks.values()]
    own = logits(model)
    with applied(model, Intervention(experts_per_token=6.0, shuffle_importance=1), lambda model: ran.append(logits(model))):
        assert ran and "budget" in model.config.moe.router_options
        shuffled = logits(model)
    assert not torch.equal(shuffled, own) and torch.equal(logits(model), own)
    assert [block.router.options for block in model.moe_blocks.values()] == before
    with pytest.raises(OptionError, match="run: the routers have a budget"), applied(model, Intervention(experts_per_token=6.0)):
        pass
