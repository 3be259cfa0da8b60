"""What holds for AnyExperts whatever its options: found by hypothesis, which looks for the options that break it."""

import itertools
import math
import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomoe.model.modality import Modality
from evomoe.model.routers.anyexperts import AnyExpertsRouter, cap_by_batch, choose_capped

D = 6
quick = settings(max_examples=60, deadline=None)


@st.composite
def choices(draw):
    """Logits with ties, numbers of slots and caps."""
    real, virtual = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    tokens = draw(st.integers(1, 4))
    cell = st.integers(-3, 3)
    logits = draw(st.lists(st.lists(cell, min_size=real + virtual, max_size=real + virtual), min_size=tokens, max_size=tokens))
    slots = draw(st.lists(st.integers(1, real), min_size=tokens, max_size=tokens))
    caps = [draw(st.integers(0, slot - 1)) for slot in slots]
    return torch.tensor(logits, dtype=torch.float32), real, torch.tensor(slots), torch.tensor(caps)


@quick
@given(choices())
def test_no_other_choice_that_the_cap_allows_has_a_larger_sum(choice):
    logits_TN, real, slots_T, cap_T = choice
    N = logits_TN.shape[1]
    index_TK = choose_capped(logits_TN, real, slots_T, cap_T, most=int(slots_T.max()))
    for logits_N, chosen_K, slots, cap in zip(
        logits_TN.tolist(), index_TK.tolist(), slots_T.tolist(), cap_T.tolist(), strict=True
    ):
        chosen = [expert for expert in chosen_K if expert < N]
        assert len(set(chosen)) == slots and sum(expert >= real for expert in chosen) <= cap
        allowed = (some for some in itertools.combinations(range(N), slots) if sum(expert >= real for expert in some) <= cap)
        assert sum(logits_N[expert] for expert in chosen) == max(sum(logits_N[e] for e in some) for some in allowed)


@settings(max_examples=300, deadline=None)
@given(choices(), st.sampled_from([0.0, 0.2, 0.34, 0.5, 0.9]))
def test_no_other_choice_that_the_cap_of_the_batch_allows_has_a_larger_sum(choice, rho):
    logits_TN, real, slots_T, _ = choice
    N = logits_TN.shape[1]
    cap_T = cap_by_batch(logits_TN, real, slots_T, rho, min_real=1)
    index_TK = choose_capped(logits_TN, real, slots_T, cap_T, most=int(slots_T.max()))
    most = math.floor(rho * int(slots_T.sum()) + 1e-4)
    assert ((index_TK >= real) & (index_TK < N)).sum() <= most
    best = {0: 0.0}  # the largest sum of the tokens so far, by how many virtual experts they have
    for logits_N, slots in zip(logits_TN.tolist(), slots_T.tolist(), strict=True):
        sums: dict[int, float] = {}
        for some in itertools.combinations(range(N), slots):
            if (virtual := sum(expert >= real for expert in some)) < slots:  # one real expert at least
                value = sum(logits_N[expert] for expert in some)
                for before, total in best.items():
                    sums[before + virtual] = max(sums.get(before + virtual, -math.inf), total + value)
        best = sums
    chosen = sum(logits_N[e] for logits_N, row in zip(logits_TN.tolist(), index_TK.tolist(), strict=True) for e in row if e < N)
    assert chosen == max(total for virtual, total in best.items() if virtual <= most)


def numbers(low: float, high: float):
    return st.floats(low, high, allow_subnormal=False)  # other tests have the processor flush these to zero


@st.composite
def routers(draw):
    """A router that ``check`` passes, with K."""
    real = draw(st.integers(2, 12))
    groups = draw(st.sampled_from([n for n in range(1, real + 1) if real % n == 0]))
    open_groups = draw(st.integers(1, groups))
    most = open_groups * real // groups
    low = draw(numbers(1, most))
    high = draw(numbers(low, most))
    options = {
        "k_min": low,
        "k_max": high,
        "rho": draw(numbers(0, 0.9)),
        "num_virtual": draw(st.integers(0, 6)),
        "virtual": draw(st.sampled_from(["zero", "identity", "constant"])),
        "min_real": draw(st.integers(1, math.floor(low))),
        "cap_scope": draw(st.sampled_from(["token", "expectation"])),
        "alpha_f": draw(st.sampled_from([0.0, 0.01, 0.5])),
        "lam": draw(st.sampled_from([0.0, 1.0, 3.0])),
        "over": draw(st.sampled_from(["real", "all"])),
        "importance_width": 4,
        "scores": draw(st.sampled_from(["softmax", "sigmoid"])),
        "groups": groups,
        "open_groups": open_groups,
        "group_best": draw(st.integers(1, real // groups)),
        "biased": draw(st.booleans()),
    }
    torch.manual_seed(draw(st.integers(0, 100)))
    router = AnyExpertsRouter(D, real, **options).eval()
    torch.nn.init.normal_(router.importance.outer.weight, std=2.0)
    torch.nn.init.normal_(router.gate.weight, std=1.0)
    if router.bias is not None:
        torch.nn.init.normal_(router.bias.value_N, std=0.3)
    return router


@quick
@given(routers(), st.integers(1, 9))
def test_every_token_has_its_slots_within_range_and_cap_whatever_it_is_batched_with(router, cut):
    x_TD = torch.randn(10, D, generator=torch.Generator().manual_seed(1))

    def route(x_TD: torch.Tensor):
        modality = Modality.of(torch.zeros(1, len(x_TD), dtype=torch.bool), None)
        return router.route(x_TD, modality, 1, "straight_through")

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        router.check(1, "straight_through")
        whole, parts = route(x_TD), [route(x_TD[:cut]), route(x_TD[cut:])]
    R, N = router.num_experts, whole.logits_TE.shape[1]
    slots_T = (router.options.k_min + (router.options.k_max - router.options.k_min) * whole.importance_T.sigmoid()).round().long()
    virtual_T = ((whole.index_TK >= R) & (whole.index_TK < N)).sum(-1)
    assert torch.equal((whole.index_TK < N).sum(-1), slots_T)
    assert round(router.options.k_min) <= slots_T.min() and slots_T.max() <= round(router.options.k_max)
    assert (slots_T - virtual_T >= router.options.min_real).all()
    size = R // router.options.groups
    assert all(
        len({expert // size for expert in row if expert < R}) <= router.options.open_groups for row in whole.index_TK.tolist()
    )
    if router.options.cap_scope == "token":
        assert (virtual_T <= router.options.rho * slots_T + 1e-4).all()
    assert all(len(set(row) - {N}) == slots for row, slots in zip(whole.index_TK.tolist(), slots_T.tolist(), strict=True))
    assert torch.equal(torch.cat([part.index_TK for part in parts]), whole.index_TK)
    torch.testing.assert_close(torch.cat([part.weight_TK for part in parts]), whole.weight_TK)
    assert (whole.weight_TK[whole.index_TK == N] == 0).all()
    counted = whole.index_TK < (N if router.options.over == "all" else R)
    torch.testing.assert_close((whole.weight_TK * counted).sum(-1), torch.ones(10))
