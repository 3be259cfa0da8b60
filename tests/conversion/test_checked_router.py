"""A router of one's own is tried in a small model: all of ours keep what is promised, and each broken promise is named."""

import pytest
import torch

from evomoe import ROUTERS, check_router
from evomoe.model.routers.linear import LinearRouter
from evomoe.support.errors import OptionError


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_of_ours_keeps_its_promises(name):
    for k in (1, 2):
        check_router(name, num_experts=8, num_experts_per_tok=k)


class Mixes(LinearRouter):
    def forward(self, x_TD, modality):
        return super().forward(x_TD - x_TD.mean(0), modality)


class Forgets(LinearRouter):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("drawn", torch.randn(self.num_experts), persistent=False)

    def forward(self, x_TD, modality):
        return super().forward(x_TD, modality) + 9 * self.drawn


class NeverLearns(LinearRouter):
    def forward(self, x_TD, modality):
        return super().forward(x_TD, modality).detach()


class Breaks(LinearRouter):
    def forward(self, x_TD, modality):
        return x_TD[:, :3]


class ReadsValues(LinearRouter):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sum = self.gate.weight.sum().item()


class Tuple(LinearRouter):
    def forward(self, x_TD, modality):
        return super().forward(x_TD, modality), 1


class NotFinite(LinearRouter):
    def forward(self, x_TD, modality):
        return super().forward(x_TD, modality) * float("nan")


class Fails(LinearRouter):
    def forward(self, x_TD, modality):
        return x_TD @ torch.zeros(3, 3)


class Loose(LinearRouter):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.drawn = torch.randn(self.num_experts)

    def forward(self, x_TD, modality):
        return super().forward(x_TD, modality) + self.drawn


@pytest.mark.parametrize(
    "kind, said",
    [
        (Mixes, r"hangs on that token alone.*Of 12 tokens \d+ got other experts"),
        (Forgets, r"saved and loaded again it chooses as before.*Of 12 tokens \d+ got"),
        (NeverLearns, r"its parameters learn from the loss.*Without a gradient: gate.weight"),
        (Breaks, r"'mine' was tried on 5 random tokens and raised ValueError"),
        (ReadsValues, r"'mine' must be made on torch's meta device too.*RuntimeError: .*test_checked_router.py, line \d+\)"),
        (Tuple, r"'mine' was tried on 5 random tokens.*Tuple gave logits that are a tuple; \(5, 4\) float32 is expected"),
        (NotFinite, r"'mine' was tried on 5 random tokens, and gave logits that are not finite"),
        (Fails, r"'mine' was tried on 5 random tokens and raised RuntimeError: .*test_checked_router.py, line \d+\)"),
        (
            Loose,
            r"'mine' .*saved and loaded again.*neither parameters nor buffers: drawn. Hand them to register_buffer.*py, line",
        ),
    ],
)
def test_a_broken_promise_is_named(monkeypatch, kind, said):
    monkeypatch.setitem(ROUTERS, "mine", kind)
    with pytest.raises(OptionError, match=said):
        check_router("mine")


def test_it_is_silent(capfd):
    check_router("linear")
    assert capfd.readouterr() == ("", "")


def test_scores_in_half_precision_are_seen(monkeypatch):
    class Half(LinearRouter):
        def forward(self, x_TD, modality):
            return super().forward(x_TD, modality).to(self.gate.weight.dtype)

    monkeypatch.setitem(ROUTERS, "half", Half)
    with pytest.raises(OptionError, match="'half' breaks a promise: its scores are float32 whatever the model's precision"):
        check_router("half")


def test_the_state_of_random_numbers_stays_and_an_unknown_name_is_refused():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_router("dtr")
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(OptionError, match="there is no router 'dtrr'; did you mean 'dtr'. Choose from linear"):
        check_router("dtrr")
