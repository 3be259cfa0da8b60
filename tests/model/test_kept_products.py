"""What is made of weights once for an answer: the same answer, and never of weights that were."""

import pytest
import torch
from tiny import inputs_for, make_llava

from evomoe import upcycle
from evomoe.model.kept import kept, weights_stay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("router", ["dtr", "dtr+shared", "modality", "linear"])
def test_an_answer_is_that_of_weights_read_at_each_step(router, dtype, monkeypatch):
    model = upcycle(make_llava(), router=router, expert_init="noise", init_options={"std": 0.3}).to(dtype).eval()
    for block in model.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs_for("llava", (1,)).items()}
    options = {
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }

    def logits() -> torch.Tensor:
        return torch.cat(model.generate(**inputs, **options).logits)

    once = logits()
    for parameter in model.moe_blocks[0].router.parameters():
        parameter.data.copy_(torch.randn_like(parameter))  # changes the weights without telling autograd
    changed = logits()
    assert not torch.equal(changed, once)
    monkeypatch.setattr("evomoe.model.kept._STORE", FreshStore())
    torch.testing.assert_close(logits(), changed, atol=0, rtol=0)


class FreshStore:
    """Keeps nothing."""

    def get(self):
        return None

    def set(self, value):
        return None

    def reset(self, token):
        pass


def test_a_product_is_made_once_within_an_answer_alone():
    made, owner, other = [], torch.nn.Identity(), torch.nn.Identity()

    def make(owner: torch.nn.Module) -> torch.Tensor:
        return kept(owner, lambda: made.append(owner) or torch.ones(1))

    make(owner), make(owner)
    assert len(made) == 2
    for _ in range(2):
        with weights_stay():
            make(owner), make(owner), make(other)
    assert len(made) == 2 + 2 * 2


def test_the_router_s_product_is_made_once_for_all_steps(monkeypatch):
    from evomoe.model.routers.dtr import HyperNetwork

    model = upcycle(make_llava(), router="dtr").eval()
    calls, folded = [], HyperNetwork._folded
    monkeypatch.setattr(HyperNetwork, "_folded", lambda self, phi_ED: calls.append(1) or folded(self, phi_ED))
    with torch.no_grad():
        model.generate(**inputs_for("llava", (1,)), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert len(calls) == 2 * len(model.moe_blocks)  # each layer has a network per modality
