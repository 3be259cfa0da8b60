"""A file of evolved experts is whole and belongs to the model, or every verb refuses it in a sentence before anything starts."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import make_llava, write_workspace

from evomoe import upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.structure import decoder_layers
from evomoe.recipe.named_recipes import EVOMOE
from evomoe.training.dry_run import describe
from evomoe.training.run import run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("evolved"))


def right() -> dict[str, torch.Tensor]:
    """What Stage II leaves for layers 0 and 2 of the tiny model."""
    torch.manual_seed(0)
    layers = decoder_layers(make_llava())
    return {
        f"layers.{layer}.experts.{n}.{name}": (parameter + 0.01 * torch.randn(parameter.shape)).detach()
        for layer in (0, 2)
        for n in (1, 2, 3)
        for name, parameter in layers[layer].mlp.named_parameters()
    }


RIGHT = right()
FAULTS = {
    "missing": (lambda t: None, "has no tensor '{name}'"),
    "nan": (lambda t: torch.full_like(t, math.nan), "'{name}' has values that are not finite"),
    "one infinity": (lambda t: torch.cat([t.flatten()[1:], torch.tensor([math.inf])]).reshape(t.shape), "'{name}' has values that are not finite"),
    "integers": (lambda t: t.to(torch.int32), "'{name}' has values of type torch.int32"),
    "booleans": (lambda t: t > 0, "'{name}' has values of type torch.bool"),
    "turned": (lambda t: t.T.contiguous(), "'{name}' has shape .*belong to another model"),
    "smaller": (lambda t: t[1:].clone(), "'{name}' has shape .*belong to another model"),
    "flat": (lambda t: t.flatten().clone(), "'{name}' has shape .*belong to another model"),
}  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=24)
@given(st.sampled_from(sorted(RIGHT)), st.sampled_from(sorted(FAULTS)))
def test_whatever_is_wrong_with_any_part_is_said(workspace, name, fault):
    make, message = FAULTS[fault]
    tensors = {key: make(tensor) if key == name else tensor for key, tensor in RIGHT.items()}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    with pytest.raises(ValueError, match=message.format(name=name)):
        upcycle(make_llava(), expert_init="evolved", init_options={"experts": tensors})


FURTHER = {
    "a further layer": ({"layers.1.experts.1.x": torch.zeros(1)}, "has 'layers.1.experts.1.x' too"),
    "a further expert": ({"layers.0.experts.4.up_proj.weight": torch.zeros(1)}, "has 4 evolved experts for layer 0, but num_experts 4 needs 3"),
    "a further part": ({"layers.0.experts.1.bias": torch.zeros(1)}, "has 'layers.0.experts.1.bias' too"),
    "something else": ({"lm_head.weight": torch.zeros(1)}, "has 'lm_head.weight' too"),
    "nan": ({"layers.2.experts.3.up_proj.weight": torch.full_like(RIGHT["layers.2.experts.3.up_proj.weight"], math.nan)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FURTHER)
def test_every_verb_says_so_before_it_starts(workspace, tmp_path, fault):
    further, message = FURTHER[fault]
    file = tmp_path / "experts.safetensors"
    save_file(RIGHT | further, file)
    given = {"expert_init": "evolved", "init_options": {"experts": str(file)}}
    recipe = EVOMOE.but(
        model=str(workspace / "model"), data=str(workspace / "data.json"), image_root=str(workspace / "images"),
        output=str(tmp_path / "run"), stages=(3,), router_options={"hypernet_width": 4, "rank": 2}, **given,
    )  # fmt: skip
    for verb in (lambda: describe(recipe), lambda: run(recipe), lambda: upcycle_folder(recipe.model, tmp_path / "out", **given)):
        with pytest.raises(ValueError, match=message) as caught:
            verb()
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
    save_file(RIGHT, file)
    assert describe(recipe) and upcycle_folder(recipe.model, tmp_path / "out", **given)


@pytest.mark.parametrize("content", [b"", b"{}", b'\x08\0\0\0\0\0\0\0{"a": 1}', b"\xff" * 100])
def test_a_file_that_is_none(tmp_path, content):
    (tmp_path / "e.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"e.safetensors cannot be read as safetensors"):
        upcycle(make_llava(), expert_init="evolved", init_options={"experts": str(tmp_path / "e.safetensors")})
