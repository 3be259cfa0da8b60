"""Which parameters the parts of a model are."""

import pytest
from small_runs import under
from tiny import make, make_llava

from evomoe import upcycle
from evomoe.training.trainable import set_trainable


@pytest.mark.parametrize("family", ["llava", "llava-phi"])
@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("projector", ("multi_modal_projector",)),
        ("text", ("language_model", "lm_head")),
        ("vision", ("vision_tower",)),
        ("ffn", ("language_model.layers.0.mlp", "language_model.layers.2.mlp")),
        ("ffn+projector", ("language_model.layers.0.mlp", "language_model.layers.2.mlp", "multi_modal_projector")),
    ],
)
def test_parts_of_a_dense_model(family, what, parts):
    model = make(family)
    names = set(set_trainable(model, what, [0, 2]))
    assert under(names, *parts) and names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if any(part in n for part in parts)}


def test_parts_of_a_sparse_model():
    model = upcycle(make_llava(), shared_expert=True)
    assert under(set(set_trainable(model, "router", [0, 2])), ".router.", ".shared_expert_gate.")
    assert under(set(set_trainable(model, "experts", [0, 2])), ".experts.", ".shared_expert.")
    with pytest.raises(ValueError, match="has no parameters in 'router'"):
        set_trainable(make_llava(), "router", [0, 2])
