"""Whether the language loss asks the router to tell the experts apart.

Implements: Section 1 (symmetry of experts).

T tokens, D hidden, E experts.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from evomoe.analysis.evaluation_mode import evaluation_mode, token_losses
from evomoe.analysis.uniformity import effect_spread, symmetry_gradient
from evomoe.model.sparse_model import SparseModel


def symmetry_gradients(model: SparseModel, batches: Iterable[dict[str, Tensor]]) -> dict[int, float]:
    """``uniformity.symmetry_gradient`` of each MoE layer, by its index, over all tokens of some labelled batches.

    The model runs as it is, in evaluation mode, and is not changed; every expert, virtual ones too, sees every token once more.
    """
    sums: dict[int, Tensor] = {}
    blocks = model.moe_blocks
    with evaluation_mode(model):
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            with torch.enable_grad(), _taps(model) as taps:
                out = model(**inputs, output_router_logits=True)
                loss = token_losses(out.logits, batch["labels"]).sum()
                gradients = torch.autograd.grad(loss, list(taps.values()))
            with torch.no_grad():
                for (layer, record), gradient_TD in zip(out["records"].items(), gradients, strict=True):
                    scale_T1, virtual = record.routing.input_scale_T1, blocks[layer].router.virtual_experts
                    x_TD = record.x_TD if scale_T1 is None else record.x_TD * scale_T1.to(record.x_TD.dtype)
                    outputs = [expert(x_TD) for expert in record.experts] + (virtual.outputs(x_TD) if virtual else [])
                    effect_TE = torch.stack([(gradient_TD.float() * out_TD.float()).sum(-1) for out_TD in outputs], dim=-1)
                    found = torch.stack(effect_spread(effect_TE, record.routing.probs_TE)).double().cpu()
                    sums[layer] = sums[layer] + found if layer in sums else found
    return {layer: symmetry_gradient(*found.tolist()) for layer, found in sums.items()}


@contextmanager
def _taps(model: SparseModel) -> Iterator[dict[int, Tensor]]:
    """Within the block, each MoE layer adds zeros (T, D) to its experts' output; the loss's gradient there is read off them."""
    taps: dict[int, Tensor] = {}

    def tap(layer: int):
        def add(module, args: tuple, y_TD: Tensor) -> Tensor:
            taps[layer] = torch.zeros_like(y_TD, requires_grad=True)
            return y_TD + taps[layer]

        return add

    with ExitStack() as stack:
        for layer, block in model.moe_blocks.items():
            stack.callback(block.experts.register_forward_hook(tap(layer)).remove)
        yield taps
