"""On a GPU nothing in a training pass waits for what tensors hold: one look at the kinds of the tokens, and none in any layer."""

import pytest
import torch
from tiny import inputs_for, make_llava
from tiny.router_options import ROUTER_OPTIONS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evomoe import AUX_LOSSES, ROUTERS, upcycle
from evomoe.model.modality import Modality
from evomoe.model.sparse_model import SparseModel
from evomoe.model.without_waiting import occurrences, places, places_of_kinds
from evomoe.training.meter import RouterMeter
from evomoe.training.trainable import set_trainable

aten = torch.ops.aten
WAIT = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.bincount.default,
    aten.masked_select.default,
    aten.equal.default,
}
"""Operations whose result, or its shape, depends on the contents of a tensor: CUDA waits for them."""


class Waits(TorchDispatchMode):
    """Notes each operation for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.on = False

    def __enter__(self):
        self.on = True
        return super().__enter__()

    def __exit__(self, *error):
        self.on = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default) and [
            index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)
        ]
        if func in WAIT or masks:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def sparse(router: str, **changes) -> SparseModel:
    options = {"expert_init": "noise", "router": router, **ROUTER_OPTIONS.get(router, {}), **changes}
    model = upcycle(make_llava(), moe_layers="all", **options).train()
    for block in model.moe_blocks.values():
        block.experts.implementation = "grouped_mm"
    return model


@pytest.fixture
def waits(monkeypatch) -> Waits:
    """Notes reads as a list, too, which no operation tells of."""
    waits = Waits()
    for name in ("tolist", "numpy"):
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *args, original=original, name=name):
            if waits.on:
                waits.seen.append(name)
            return original(tensor, *args)

        monkeypatch.setattr(Tensor, name, read)
    return waits


def waits_in_layers(model: SparseModel, inputs: dict[str, Tensor], waits: Waits) -> list[str]:
    """What a step waits for, forward and backward, within the MoE layers, their losses and the meter."""
    modality = model._modality(inputs["input_ids"], None, inputs["attention_mask"], None)
    assert len(modality.tokens) == 2  # found at the begin of a pass
    meter, hooks = RouterMeter(), []
    for block in model.moe_blocks.values():
        hooks.append(block.register_forward_pre_hook(lambda *_: waits.__enter__() and None))
        hooks.append(block.register_forward_hook(lambda *_: waits.__exit__(None, None, None)))
    out = model(**inputs, labels=inputs["input_ids"], modality=modality, output_router_logits=True)
    for hook in hooks:
        hook.remove()
    with waits:
        meter.update(out)
        for record in out.records.values():
            for name in model.config.moe.aux_losses:
                AUX_LOSSES[name](record)
        out.loss.backward()
    return waits.seen


@pytest.mark.parametrize("trained", ["router", "router+experts"])
@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "fixed"])
def test_no_layer_waits(router, trained, waits):
    losses = {"aux_losses": {"balance": 0.1, "z": 0.1}} if router != "anyexperts" else {}
    model = sparse(router, **losses)
    set_trainable(model, trained, model.config.moe.moe_layers)
    assert waits_in_layers(model, inputs_for(model, (1, 2)), waits) == []


def test_the_loop_waits_and_the_test_sees_it(waits):
    model = sparse("linear")
    for block in model.moe_blocks.values():
        block.experts.implementation = "loop"
    assert set(waits_in_layers(model, inputs_for(model, (1, 2)), waits)) == {"tolist"}


class Far(Tensor):
    """A tensor on a device far away: its contents are seen by ``cpu`` alone, and each look counts."""

    looks = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.cpu:
            cls.looks += 1
            return args[0].as_subclass(Tensor)
        assert func not in (Tensor.nonzero, Tensor.__bool__, Tensor.item, Tensor.tolist, Tensor.numpy), func
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("padded", [None, False, True])
def test_a_pass_looks_once_at_the_kinds_of_its_tokens(padded, monkeypatch):
    monkeypatch.setattr(Far, "looks", 0)
    is_image_BS = torch.rand(3, 8) < 0.5
    is_real_BS = torch.ones(3, 8, dtype=torch.bool)
    is_real_BS[1, 5:] = not padded
    masks = is_image_BS.as_subclass(Far), None if padded is None else is_real_BS.as_subclass(Far)
    modality = Modality.of(*masks)
    image, text = modality.tokens
    assert Far.looks == 1
    is_image_T = is_image_BS[is_real_BS] if padded else is_image_BS.reshape(-1)
    assert (
        image.tolist() == is_image_T.nonzero().squeeze(-1).tolist()
        and text.tolist() == (~is_image_T).nonzero().squeeze(-1).tolist()
    )
    assert (modality.position_T is None) == (not padded)
    assert torch.equal(modality.is_image_T.as_subclass(Tensor), is_image_T)


def test_occurrences_are_those_of_bincount():
    index = torch.randint(0, 9, (40, 2))
    assert torch.equal(occurrences(index, 6), torch.bincount(index.reshape(-1), minlength=9)[:6])
    assert occurrences(index[:0], 3).tolist() == [0, 0, 0]
    mask = torch.tensor([True, False, True])
    assert places(mask, mask.device).tolist() == [0, 2]
    assert [found.tolist() for found in places_of_kinds(mask, mask.device)] == [[0, 2], [1]]
