"""What takes part in the choice of experts beside logits: sigmoid scores, groups, a bias."""

import pytest
import torch
from small_routers import D, R, a_router, tokens
from tiny import make_language_model

from evomoe import upcycle
from evomoe.model.budget import end_training, set_router_options
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.choice import ChoiceBias, hide_groups
from evomoe.support.errors import OptionError


@pytest.mark.parametrize("best", [1, 2])
def test_experts_come_from_the_best_groups_alone(best):
    choice_TE = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
    found_TE = hide_groups(choice_TE, groups=4, open_groups=2, best=best)
    for choice_E, found_E in zip(choice_TE.tolist(), found_TE.tolist(), strict=True):
        groups = [choice_E[3 * g : 3 * g + 3] for g in range(4)]
        scores = [sum(sorted(group)[-best:]) for group in groups]
        is_open = [sorted(scores).index(score) >= 2 for score in scores]
        assert found_E == [c if is_open[e // 3] else float("-inf") for e, c in enumerate(choice_E)]
    assert torch.equal(hide_groups(choice_TE, 4, 4, 1), choice_TE)


def test_sigmoid_scores_groups_and_scale():
    router = a_router(
        k_min=3, k_max=3, num_virtual=2, rho=0.4, lam=0.0, scores="sigmoid", groups=4, open_groups=2, output_scale=2.5
    )
    x_TD, modality = tokens()
    routing = router.route(x_TD, modality, 3, "probability")
    p_TN = routing.logits_TE.sigmoid()
    torch.testing.assert_close(routing.weight_TK, 2.5 * p_TN.gather(1, routing.index_TK))
    torch.testing.assert_close(routing.probs_TE, p_TN / p_TN.sum(-1, keepdim=True))
    for t, chosen_K in enumerate(routing.index_TK.tolist()):
        assert len({expert // 2 for expert in chosen_K if expert < R}) <= 2
        assert max(range(R), key=lambda expert: p_TN[t, expert]) in chosen_K


def test_the_bias_takes_part_in_the_choice_and_not_in_the_weights():
    plain, biased = (a_router(k_min=3, k_max=3, lam=0.0, num_virtual=2, rho=0.4, biased=flag) for flag in (False, True))
    biased.load_state_dict(plain.state_dict(), strict=False)
    x_TD, modality = tokens()
    before = plain.route(x_TD, modality, 3, "probability")
    assert torch.equal(biased.route(x_TD, modality, 3, "probability").index_TK, before.index_TK)
    biased.bias.value_N[5] = 2.0
    after = biased.route(x_TD, modality, 3, "probability")
    assert (after.index_TK[:, 0] == 5).all() and not (before.index_TK == 5).any(-1).all()
    torch.testing.assert_close(after.weight_TK, after.probs_TE.gather(1, after.index_TK))
    assert torch.equal(after.probs_TE, before.probs_TE)


def test_the_bias_moves_by_hand():
    bias = ChoiceBias(4)
    bias.count(torch.tensor([[0, 1], [0, 3], [0, 4]]))  # 4: no expert
    bias.count(torch.tensor([[0, 1], [0, 3], [0, 2]]))
    bias.move(rate=0.1, num_real=3, virtual_share=0.4)
    shares = [6 / 11, 2 / 11, 1 / 11]
    torch.testing.assert_close(bias.value_N, torch.tensor([*(0.1 * (0.2 - share) for share in shares), 0.0]))
    moved = bias.value_N
    bias.move(rate=0.1, num_real=3, virtual_share=0.4)  # nothing was chosen since
    assert bias.value_N is moved


def test_the_bias_balances_experts_and_holds_the_virtual_share():
    router = a_router(k_min=4, k_max=4, lam=0.0, rho=0.25, num_virtual=8, cap_scope="expectation", bias_rate=0.05).train()
    with torch.no_grad():
        router.gate.weight *= 0.1
        router.gate.weight[:2] += 0.1  # two real experts that every token likes
    x_TD, modality = tokens(400)
    x_TD = x_TD + 0.5

    def shares() -> tuple[float, float]:
        index_TK = router.route(x_TD, modality, 4, "straight_through").index_TK
        counts_N = torch.bincount(index_TK.flatten(), minlength=R + 8).float()
        return (counts_N[R:].sum() / counts_N.sum()).item(), (counts_N[:R].max() / counts_N[:R].mean()).item()

    virtual, busiest = shares()
    for _ in range(300):
        router.route(x_TD, modality, 4, "straight_through")
        router.after_step()
    now_virtual, now_busiest = shares()
    assert abs(now_virtual - 0.25) < abs(virtual - 0.25) / 4 and now_busiest - 1 < (busiest - 1) / 4
    router.after_step()  # what was counted for the shares
    router.bias.value_N = torch.zeros(R + 8)
    with torch.no_grad():
        router.route(x_TD, modality, 4, "straight_through")
    router.eval().route(x_TD, modality, 4, "straight_through")
    router.after_step()
    assert not router.bias.value_N.any()  # what is asked outside training does not count


def test_the_bias_counts_the_tokens_of_all_processes(monkeypatch):
    bias = ChoiceBias(2)
    bias.count(torch.tensor([[0], [1]]))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda counts_N: counts_N.add_(torch.tensor([2.0, 0.0])))
    bias.move(rate=1.0, num_real=2, virtual_share=0.0)
    torch.testing.assert_close(bias.value_N, torch.tensor([0.5 - 3 / 4, 0.5 - 1 / 4]))


def test_hidden_experts_are_not_chosen_for_their_bias():
    router = a_router(k_min=2, k_max=2, num_virtual=0, biased=True).train()
    router.bias.value_N[0] += 5.0
    x_TD, modality = tokens(400)
    routing = router.route(x_TD, modality, 2, "probability", dropout=0.5)
    assert (routing.weight_TK > 0).all()


def test_a_shuffled_router_hands_the_step_on():
    router = ROUTERS["shuffled"](D, R, inner="anyexperts", k_min=2, k_max=4, bias_rate=0.1).train()
    x_TD, modality = tokens()
    router.route(x_TD, modality, 2, "straight_through")
    router.after_step()
    assert router.inner.bias.value_N.any()


def test_a_shuffled_router_ends_training_as_the_one_inside_would():
    options = {"k_min": 2, "k_max": 4, "cap_scope": "batch"}
    model = upcycle(make_language_model(), router="shuffled", router_options={"inner": "anyexperts", **options}, num_experts=R)
    end_training(model)
    for block in model.moe_blocks.values():
        assert block.router.inner.options.cap_scope == "token"
    assert ROUTERS["shuffled"].read(model.config.moe.router_options, R).inner_options["cap_scope"] == "token"
    assert next(iter(model.moe_blocks.values())).router.importance_network is not None
    with pytest.raises(OptionError, match="^router: 'anyexperts' has no 'importance_width' that can be changed after training"):
        set_router_options(model, inner_options={**options, "importance_width": 5})
    assert next(iter(model.moe_blocks.values())).router.inner.options.cap_scope == "token"
