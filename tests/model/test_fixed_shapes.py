"""Decoding compiled whole, as a dense model's: no break, the same scores, whatever the router."""

import pytest
import torch
from tiny import inputs_for, make, make_llava
from tiny.router_options import ROUTER_OPTIONS
from transformers import StaticCache

from evomoe import upcycle
from evomoe.conversion.attaching import attach
from evomoe.model.experts import Experts
from evomoe.model.fixed_shapes import run_every_expert
from evomoe.model.routers import ROUTERS

OPTIONS = ROUTER_OPTIONS | {"linear": {"num_experts_per_tok": 2, "shared_expert": True}}


def random_routers(model):
    for block in model.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def sparse_llava(router: str):
    noise = {"expert_init": "noise", "init_options": {"std": 0.3}}
    return random_routers(upcycle(make_llava(), router=router, **noise | OPTIONS.get(router, {})))


@torch.no_grad()
def decode(model, inputs: dict, forward, steps: int = 4) -> torch.Tensor:
    """Logits of a few greedy steps after the prompt, in a cache of one size."""
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + steps)
    mask = torch.ones(1, length + steps, dtype=torch.long)
    out, found = model(**inputs | {"attention_mask": mask[:, :length]}, past_key_values=cache, use_cache=True), []
    for step in range(steps):
        token = out.logits[:, -1:].argmax(-1)
        out = forward(input_ids=token, attention_mask=mask[:, : length + step + 1], past_key_values=cache, use_cache=True)
        found.append(out.logits)
    return torch.cat(found)


def graphs_of(model) -> tuple[list, object]:
    torch.compiler.reset()
    graphs: list = []
    return graphs, torch.compile(model.forward, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)


@pytest.fixture(scope="module")
def graphs_of_a_dense_step() -> int:
    """One for each length of the mask until its length is a variable."""
    model = make_llava().eval()
    graphs, compiled = graphs_of(model)
    decode(model, inputs_for("llava", (1,)), compiled)
    return len(graphs)


QUICK = ("dtr", "anyexperts")
"""Compiling takes seconds: these in each run, the others with the slow tests."""


@pytest.mark.parametrize("router", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ROUTERS])
def test_a_step_is_compiled_whole_as_a_dense_one_and_gives_the_same_scores(router, graphs_of_a_dense_step):
    model, inputs = sparse_llava(router), inputs_for("llava", (1,))
    graphs, compiled = graphs_of(model)
    torch.testing.assert_close(decode(model, inputs, compiled), decode(model, inputs, model), atol=1e-5, rtol=1e-4)
    assert 1 <= len(graphs) <= graphs_of_a_dense_step
    names = {getattr(node.target, "__name__", str(node.target)) for graph in graphs for node in graph.graph.nodes}
    assert not names & {"nonzero", "bincount", "item", "tolist"}


def test_experts_of_a_model_that_was_sparse_before_are_compiled_too(graphs_of_a_dense_step):
    model = random_routers(attach(make("qwen3-moe"), virtual="identity", num_virtual=2, rho=0.4))
    model.set_experts_implementation("batched_mm")
    inputs = inputs_for("qwen3-moe", (0,))
    graphs, compiled = graphs_of(model)
    torch.testing.assert_close(decode(model, inputs, compiled), decode(model, inputs, model), atol=1e-5, rtol=1e-4)
    assert 1 <= len(graphs) <= graphs_of_a_dense_step


def test_every_expert_run_is_as_each_token_s_own():
    torch.manual_seed(0)
    experts = Experts([torch.nn.Linear(8, 8) for _ in range(4)])
    x_TD, index_TK, weight_TK = torch.randn(10, 8), torch.randint(0, 6, (10, 3)), torch.rand(10, 3)
    expected = experts(x_TD, index_TK, weight_TK)  # 4 and 5 are no experts
    torch.testing.assert_close(run_every_expert(experts, x_TD, index_TK, weight_TK), expected)


def test_training_is_compiled_as_it_was():
    """With gradients the experts keep to the tokens that chose them, and padding is not routed."""
    model, inputs = sparse_llava("dtr").train(), inputs_for("llava", (1, 0))
    expected = model(**inputs, labels=inputs["input_ids"]).loss
    torch.compiler.reset()
    found = torch.compile(model.forward, backend="eager")(**inputs, labels=inputs["input_ids"]).loss
    torch.testing.assert_close(found, expected)
