"""A variable number of experts in a whole model: the budget, its calibration, what padding and virtual slots cost."""

import warnings

import pytest
import torch
from tiny import IMAGE_TOKEN, inputs_for, make_llava

from evomoe.analysis.calibration import calibrate, mean_real_experts, real_experts_per_token
from evomoe.analysis.interventions import shuffled_importance
from evomoe.analysis.recording import record_routing
from evomoe.conversion.upcycling import upcycle
from evomoe.model.budget import set_budget
from evomoe.model.loading import load_model
from evomoe.recipe.row_options import RouterWarning


def spread_out(model) -> None:
    """Gives the routers of a model importance and scores that differ from token to token."""
    for block in model.moe_blocks.values():
        torch.nn.init.normal_(block.router.importance.outer.weight, std=1.0)
        torch.nn.init.normal_(block.router.gate.weight, std=0.5)


def fine_grained(llava, **options):
    """A LLaVA with eight small experts in place of each FFN."""
    torch.manual_seed(0)
    model = upcycle(llava, num_experts=8, expert_init="partition", num_experts_per_tok=4, router="anyexperts", moe_layers="all",
                    router_options={"rho": 0.4, "span": 2.0, **options}).eval()  # fmt: skip
    spread_out(model)
    return model


def test_a_larger_budget_never_gives_fewer_experts_and_stays_with_the_model(llava, tmp_path):
    model, inputs = fine_grained(llava), inputs_for(llava)
    means = []
    for real in (1.2, 2.0, 3.0, 4.0):
        set_budget(model, real)
        means.append(real_experts_per_token(model, lambda model: model(**inputs)))
    assert means == sorted(means) and means[0] < means[-1]
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config.moe.router_options["budget"] == 4.0
    assert real_experts_per_token(again, lambda model: model(**inputs)) == means[-1]
    with pytest.raises(
        ValueError, match="a budget of 6 takes 9 to 11 slots, but there are only 8 real experts. .* budget is 4.2"
    ):
        set_budget(model, 6.0)
    assert model.moe_blocks[0].router.options.budget == 4.0 == model.config.moe.router_options["budget"]
    with pytest.raises(ValueError, match="is not an EvoMoE model, so it has no routers"):
        set_budget(make_llava(), 1.0)


def test_calibration_finds_the_budget_whose_mean_is_wanted(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    for wanted in (2.0, 3.5):
        found = calibrate(model, wanted, lambda model: model(**inputs), tolerance=0.05)
        assert abs(found - wanted) < 0.3 and real_experts_per_token(model, lambda model: model(**inputs)) == found


def test_a_mean_that_cannot_be_had_is_told_and_budgets_that_are_only_tried_are_not(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    with pytest.warns(RouterWarning) as said:
        found = calibrate(model, 7.9, lambda model: model(**inputs))
    assert [str(one.message).split(":")[0] for one in said] == [
        f"7.9 real experts per token cannot be had, {found:.2f} is the nearest mean"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(model, found, lambda model: model(**inputs))


def test_calibrating_to_what_is_there_changes_nothing(llava):
    model, inputs = fine_grained(llava, rho=0.15, k_min=2, k_max=7, min_real=2), inputs_for(llava)
    before = model(**inputs).logits
    own = real_experts_per_token(model, lambda model: model(**inputs))
    assert calibrate(model, own, lambda model: model(**inputs)) == own
    assert torch.equal(model(**inputs).logits, before)


def test_importance_of_other_tokens_is_a_permutation_and_ends_with_the_block(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    own = model(**inputs, output_router_logits=True)
    with shuffled_importance(model, 1):
        other = model(**inputs, output_router_logits=True)
    first, shuffled = (out.records[0].routing.importance_T for out in (own, other))
    assert not torch.equal(first, shuffled) and torch.equal(first.sort().values, shuffled.sort().values)
    with shuffled_importance(model, 2):
        assert not torch.equal(model(**inputs, output_router_logits=True).records[0].routing.importance_T, shuffled)
    assert torch.equal(model(**inputs).logits, own.logits) and not torch.equal(other.logits, own.logits)
    with pytest.raises(ValueError, match="has no routers that estimate an importance"):
        shuffled_importance(upcycle(make_llava(), router="linear"), 1).__enter__()


def test_experts_are_given_what_importance_strengthened(llava):
    model, inputs = fine_grained(llava, alpha_f=0.5), inputs_for(llava)
    given, block = [], model.moe_blocks[1]
    block.experts.register_forward_hook(lambda module, args, output: given.append(args[0]))
    record = model(**inputs, output_router_logits=True)["records"][1]
    scale_T1 = 1 + 0.5 * record.routing.importance_T.sigmoid().unsqueeze(-1)
    torch.testing.assert_close(given[0], record.x_TD * scale_T1)


def test_the_mean_counts_real_experts_alone(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    records = model(**inputs, output_router_logits=True)["records"].values()
    means = [(record.routing.index_TK < 8).sum(-1).float().mean() for record in records]
    assert any(
        ((record.routing.index_TK >= 8) & (record.routing.index_TK < record.routing.logits_TE.shape[1])).any()
        for record in records
    )
    assert real_experts_per_token(model, lambda model: model(**inputs)) == pytest.approx(float(sum(means) / len(means)))


def test_virtual_slots_run_no_expert(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    rows = []
    for expert in model.moe_blocks[0].experts:
        expert.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    out = model(**inputs, output_router_logits=True)
    index_TK = out["records"][0].routing.index_TK
    assert sum(rows) == (index_TK < 8).sum() and (index_TK == 8).any() and (index_TK >= 8).sum() > (index_TK == 8).sum()


def test_padding_costs_and_counts_nothing(llava):
    model, inputs = fine_grained(llava), inputs_for(llava)
    real_tokens = int(inputs["attention_mask"].sum())
    assert real_tokens < inputs["attention_mask"].numel()
    with record_routing(model) as padded:
        assert all(len(logits) == real_tokens for logits in model(**inputs, output_router_logits=True)["router_logits"])
    rows = []
    for block in model.moe_blocks.values():
        for expert in block.experts:
            expert.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    model(**inputs)
    with_padding, rows[:] = sum(rows), []
    with record_routing(model) as alone:
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            pictures = (
                int((inputs["input_ids"][:row] == IMAGE_TOKEN).sum()) // 4,
                int((inputs["input_ids"][row] == IMAGE_TOKEN).sum()) // 4,
            )
            one = {"input_ids": inputs["input_ids"][row][mask][None], "attention_mask": mask[mask].long()[None]}
            if pictures[1]:
                one["pixel_values"] = inputs["pixel_values"][pictures[0] : sum(pictures)]
            model(**one)
    assert sum(rows) == with_padding and alone.tokens == padded.tokens == real_tokens
    assert mean_real_experts(model, alone) == mean_real_experts(model, padded)
