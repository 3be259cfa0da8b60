"""MoE layers as servers run them: the same outputs as in the model, in shapes that do not depend on the data."""

import pytest
import torch
from tiny import make_llava
from tiny.router_options import ROUTER_OPTIONS

from evomoe import upcycle
from evomoe.model.forward_pass import ForwardPass, running
from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS
from evomoe.serving.served_block import ServedBlock, served_class
from evomoe.serving.vllm_engine import refusal

OPTIONS = ROUTER_OPTIONS


def blocks_of(router: str, **options):
    """A block as a model has it, with a random router, and the same as servers run it."""
    model = upcycle(
        make_llava(), router=router, expert_init="noise", init_options={"std": 0.3}, **OPTIONS.get(router, {}) | options
    ).eval()
    block = next(iter(model.moe_blocks.values()))
    for parameter in block.router.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    served = ServedBlock(block.layer, block.moe, block.router.hidden_size, block.experts, block.shared_expert).eval()
    served.router, served.shared_expert_gate = block.router, block.shared_expert_gate
    return block, served


class Kernel(torch.nn.Module):
    """Stands where a server's kernel is."""

    def forward(self, x_TD, index_TK, weight_TK):
        return x_TD * weight_TK.sum(-1, keepdim=True).to(x_TD.dtype) + index_TK.sum(-1, keepdim=True)


@pytest.mark.parametrize("router", ROUTERS)
def test_a_served_block_gives_what_the_block_gives(router):
    block, served = blocks_of(router, shared_expert=router == "linear")
    x_BSD = torch.randn(1, 24, block.router.hidden_size)
    for share in (0.0, 0.5, 1.0):
        is_image_BS = torch.rand(1, 24) < share
        with torch.no_grad(), running(ForwardPass(Modality.of(is_image_BS, None))):
            expected = block(x_BSD)
        served.register_buffer("is_image_N", torch.cat([is_image_BS.flatten(), torch.ones(8, dtype=torch.bool)]))
        before = x_BSD.clone()
        with torch.no_grad():
            torch.testing.assert_close(served(x_BSD), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(x_BSD, before)


QUICK = ("dtr", "top_p")
"""Compiling takes seconds: these in each run, the others with the slow tests."""


@pytest.mark.parametrize(
    "router",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ROUTERS if name != "shuffled"],
)
def test_a_router_compiles_whole_and_makes_no_shape_of_the_data(router):
    """What surrounds the experts, which a server's kernels run: no graph break, the same code for any share of images."""
    torch.compiler.reset()
    block, served = blocks_of(router)
    asked, served.experts = [], Kernel()
    served.register_buffer("is_image_N", torch.zeros(64, dtype=torch.bool))
    compiled = torch.compile(served, fullgraph=True, backend=lambda graph, _: asked.append(graph) or graph)
    for tokens, images in ((24, 0), (24, 12), (24, 24), (40, 7)):
        served.is_image_N.zero_()[:images] = True
        x_BSD = torch.randn(1, tokens, block.router.hidden_size)
        torch._dynamo.mark_dynamic(x_BSD, 1)  # the number of tokens alone: with dynamic=True plain floats would be data too
        with torch.no_grad():
            torch.testing.assert_close(compiled(x_BSD), served(x_BSD), atol=1e-5, rtol=1e-5)
    assert len(asked) == 1
    of_data = {"nonzero", "bincount", "item", "tolist", "unique", "masked_select"}
    assert not {getattr(node.target, "__name__", str(node.target)) for node in asked[0].graph.nodes} & of_data


def test_a_kernel_is_asked_for_real_experts_alone():
    block, served = blocks_of("anyexperts")
    given, served.experts = [], Kernel()
    served.experts.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1:]))
    served.register_buffer("is_image_N", torch.zeros(64, dtype=torch.bool))
    served(torch.randn(1, 64, block.router.hidden_size))
    ((index_TK, weight_TK),) = given
    assert int(index_TK.max()) < 8 and (weight_TK == 0).any() and index_TK.shape[1] == served.most_slots() > 3


@pytest.mark.parametrize(
    "router, options, slots",
    [
        ("dtr", {}, 1),
        ("linear", {"num_experts_per_tok": 2}, 2),
        ("top_p", {}, 4),
        ("top_p", {"router_options": {"most": 3}}, 3),
        ("zero_computation", {}, 2),
    ],
)
def test_a_server_knows_before_there_are_weights_how_many_slots_a_token_has(router, options, slots):
    block, served = blocks_of(router, **options)
    assert served.to("meta").most_slots() == slots


def test_a_served_model_has_blocks_for_servers_and_the_base_s_own_forward():
    model = upcycle(make_llava(), router="dtr")
    base = type(make_llava().model)
    with torch.device("meta"):
        served = served_class(base)(model.config)
    assert all(isinstance(block, ServedBlock) for block in served.moe_blocks.values()) and len(served.moe_blocks) == len(
        model.moe_blocks
    )
    assert type(served).forward is base.forward
    names = {name.removeprefix("model.") for name, _ in model.named_parameters()}
    assert {name for name, _ in served.named_parameters()} <= names


def test_families_that_vllm_would_get_wrong_are_refused():
    assert refusal(make_llava().config) is None and refusal(upcycle(make_llava()).config) is None
    sparse = upcycle(make_llava()).config
    sparse.vision_config.deepstack_visual_indexes = [0, 1]
    assert "drops them. Serve it with `--engine transformers`" in refusal(sparse)
    other = upcycle(make_llava()).config
    other.evomoe = other.evomoe | {"base_model_type": "gemma3"}
    assert "the image tokens of gemma3 see each other" in refusal(other)
