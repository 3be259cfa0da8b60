"""A sparse model that says what it sees."""

import pytest
import torch
from transformers import AutoProcessor

from evomoe import upcycle
from evomoe.model.loading import load_model


@pytest.fixture
def checkpoint(workspace) -> str:
    """A sparse model whose routers and words are random: another picture, other routers or a lost modality change the answer."""
    model = upcycle(load_model(workspace / "model"), expert_init="noise", init_options={"std": 0.5}, router="modality")
    torch.manual_seed(3)
    for parameter in (
        model.get_output_embeddings().weight,
        *(p for b in model.moe_blocks.values() for p in b.router.parameters()),
    ):
        torch.nn.init.normal_(parameter)
    model.generation_config.eos_token_id = None
    processor = AutoProcessor.from_pretrained(workspace / "model")
    weight, decode = model.get_output_embeddings().weight, processor.tokenizer.decode
    with torch.no_grad():  # words alone, which are seen in the answer
        for token in range(len(weight)):
            if not decode([token], skip_special_tokens=True).strip():
                weight[token] = 0
    model.save_pretrained(workspace / "sparse")
    processor.save_pretrained(workspace / "sparse")
    return str(workspace / "sparse")
