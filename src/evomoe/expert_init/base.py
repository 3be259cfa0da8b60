"""The contract of an expert initialiser."""

from collections.abc import Callable

from torch import nn

ExpertInit = Callable[..., list[nn.Module]]
"""``init(ffn, num_experts, layer, generator, **options)`` turns the dense FFN of one layer into its experts.

Arguments:
    ffn: the dense FFN, which must not be changed; expert 0 may be the FFN itself, so that memory grows by the new experts only.
    num_experts: E.
    layer: index of the decoder layer.
    generator: CPU generator, seeded once per model; layers draw in order.
    options: what the user passed in ``init_options``.

Returns E modules of the FFN's class.
"""
