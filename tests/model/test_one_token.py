"""A step of decoding on a CPU: where the only expert is found by its score alone, the layer's output is bit by bit as ever."""

from unittest import mock

import pytest
import torch
from tiny import make_llava

from evomoe import GATES, ROUTERS, upcycle
from evomoe.model import block as blocks
from evomoe.model.forward_pass import ForwardPass, running
from evomoe.model.modality import Modality
from evomoe.support.errors import OptionError

SHORT = {"linear", "modality", "modality+shared", "dtr", "dtr+shared"}
"""Routers of which nobody reads probabilities then."""


def block_of(router="linear", **moe):
    torch.manual_seed(0)
    model = upcycle(make_llava(), router=router, expert_init="noise", init_options={"std": 0.3}, **moe).eval()
    block = next(iter(model.moe_blocks.values()))
    for parameter in block.router.parameters():
        torch.nn.init.normal_(parameter)
    return block


def random_tokens(block):
    return torch.randn(20, block.router.hidden_size), Modality.of(torch.zeros(1, 20, dtype=torch.bool), None)


def passed(block, tokens=1, recording=False, padded=False, image=False):
    """The outputs of some passes, and how often an expert was found alone."""
    found, real = [], blocks.only_expert

    def counting(*given):
        found.append(real(*given))
        return found[-1]

    outputs = []
    with mock.patch.object(blocks, "only_expert", counting), torch.no_grad():
        for seed in range(6):
            x_BSD = torch.randn(1, tokens, block.router.hidden_size, generator=torch.Generator().manual_seed(seed))
            is_real_BS = torch.tensor([[False] * (tokens - 1) + [True]]) if padded else None
            with running(ForwardPass(Modality.of(torch.full((1, tokens), image), is_real_BS), recording=recording)):
                outputs.append(block(x_BSD))
    return torch.cat(outputs), sum(expert is not None for expert in found)


def passed_the_long_way(block, **given):
    with mock.patch.object(blocks, "only_expert", lambda *_: None):
        return passed(block, **given)[0]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_output_is_the_same_bit_by_bit(router, gate, top_k):
    try:
        block = block_of(router, gate=gate, num_experts_per_tok=top_k)
    except OptionError as error:
        pytest.skip(str(error))
    for image in (False, True):
        output, short = passed(block, image=image)
        assert torch.equal(output, passed_the_long_way(block, image=image))
        assert (short > 0) is (router in SHORT and top_k == 1 and gate != "probability")
    chosen = {tuple(experts.tolist()) for experts in block.router.route(*random_tokens(block), 1, "probability").index_TK}
    assert router in ("fixed", "anyexperts") or len(chosen) > 1  # else it would not matter which one is run


def test_a_token_beside_padding_stands_where_it_stood():
    block = block_of("dtr")
    output, short = passed(block, tokens=3, padded=True)
    assert short and torch.equal(output, passed_the_long_way(block, tokens=3, padded=True))
    assert output[:, :2].eq(0).all() and output[:, 2].ne(0).any()


def test_whoever_needs_more_has_it():
    block = block_of()
    assert passed(block)[1] and not passed(block, tokens=2)[1] and not passed(block, recording=True)[1]
    assert not passed(block_of(shared_expert=True))[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert not passed(block)[1]
    assert not passed(block.train())[1]
