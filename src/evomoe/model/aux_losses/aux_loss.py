"""The contract of an auxiliary loss."""

from collections.abc import Callable

from torch import Tensor

from evomoe.model.routing import LayerRecord

AuxLoss = Callable[[LayerRecord], Tensor]
"""A scalar of what one MoE layer did; it sees real tokens only.

A loss that needs more of a ``Routing`` than its first four fields declares them: ``@needs("importance_T")``. It is then
refused with a router that does not give them. One that runs the experts again declares ``@needs("experts")``.
"""
