"""Any router whose outputs are permuted at evaluation: does it matter which expert a token gets?

Implements: Table 10 (router).
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evomoe.model.modality import Modality
from evomoe.model.routers.router import Router
from evomoe.model.routers.virtual import VirtualExperts
from evomoe.model.routing import Routing
from evomoe.recipe.router_options import RouterOptions, ShuffledOptions
from evomoe.support.errors import OptionError, no_such, out_of, within
from evomoe.support.rows import check_row


class ShuffledRouter(Router[ShuffledOptions]):
    """Wraps another router and hands its logits to the experts in a permuted order, in evaluation mode only.

    Args:
        inner: the router inside, if it is there already; else the options name it.

    Attributes:
        rows: every router by name. The table, which imports this file, hands itself over.
    """

    Options = ShuffledOptions
    adjustable = ("inner_options",)
    rows: ClassVar[Mapping[str, type[Router]]] = {}

    def __init__(self, hidden_size: int, num_experts: int, inner: str | Router = "dtr", **options: Any) -> None:
        if isinstance(inner, str):
            super().__init__(hidden_size, num_experts, inner=inner, **options)
            self.inner = self._named(hidden_size, num_experts)
        else:
            super().__init__(hidden_size, num_experts, inner_options=asdict(inner.options), **options)
            self.inner = inner
        generator = torch.Generator("cpu").manual_seed(self.options.seed)
        identity = list(range(num_experts))
        permutation = identity
        while permutation == identity:
            permutation = torch.randperm(num_experts, generator=generator, device="cpu").tolist()
        self.permutation: list[int] = permutation

    @classmethod
    def read(cls, values: Mapping[str, Any], num_experts: int, name: str = "") -> RouterOptions:
        """As ``Router.read``; options that are not its own are those of the router inside."""
        own = {field.name for field in fields(cls.Options)}
        inner = {option: value for option, value in values.items() if option not in own}
        given = values.get("inner_options", {})
        known = {option: value for option, value in values.items() if option in own}
        return super().read(known | {"inner_options": inner | given if isinstance(given, dict) else given}, num_experts, name)

    def _named(self, hidden_size: int, num_experts: int) -> Router:
        if self.options.inner not in self.rows:
            raise OptionError("router_options.inner", f"{no_such(self.options.inner, self.rows, 'router')}.")
        check_row("router", self.options.inner, self.rows, derived_from=Router)
        inner, options = self.rows[self.options.inner], self.options.inner_options
        with within("router_options.inner_options"), out_of("router_options"):
            inner.read(options, num_experts, self.options.inner)
        return inner(hidden_size, num_experts, **options)

    @property
    def virtual_experts(self) -> VirtualExperts | None:
        return self.inner.virtual_experts

    def check(self, top_k: int, gate: str) -> None:
        self.inner.check(top_k, gate)

    def for_experts_per_token(self, number: float) -> dict[str, Any]:
        raise OptionError("experts_per_token", "router 'shuffled' does not choose a number of experts that can be set.")

    @property
    def importance_network(self) -> nn.Module | None:
        return self.inner.importance_network

    def set_options(self, options: RouterOptions) -> None:
        """As ``Router.set_options``, for the router inside too.

        Raises:
            OptionError: an option of the router inside differs that cannot change after training.
        """
        assert isinstance(options, ShuffledOptions)
        given = self.inner.read(options.inner_options, self.num_experts, options.inner)
        for name, value in asdict(given).items():
            if value != getattr(self.inner.options, name) and name not in self.inner.adjustable:
                raise OptionError("router", f"'{options.inner}' has no '{name}' that can be changed after training.")
        super().set_options(options)
        self.inner.set_options(given)

    def after_step(self) -> None:
        self.inner.after_step()

    def after_training(self) -> dict[str, Any]:
        changed = self.inner.after_training()
        return {"inner_options": {**self.options.inner_options, **changed}} if changed else {}

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        return self._permuted(self.inner(x_TD, modality))

    def route(self, x_TD: Tensor, modality: Modality, top_k: int, gate: str, dropout: float = 0.0) -> Routing:
        """As the inner router; in evaluation mode each real expert's tokens go to another one. Virtual experts keep theirs."""
        routing = self.inner.route(x_TD, modality, top_k, gate, dropout)
        if self.training:
            return routing
        index_TK, place_of_E = routing.index_TK, torch.tensor(self.permutation, device=routing.index_TK.device).argsort()
        moved_TK = place_of_E[index_TK.clamp(max=self.num_experts - 1)]
        return replace(
            routing,
            logits=self._permuted(routing.logits_TE),
            probs=self._permuted(routing.probs_TE),
            index_TK=torch.where(index_TK < self.num_experts, moved_TK, index_TK),
        )

    def _permuted(self, values_TE: Tensor) -> Tensor:
        rest = range(self.num_experts, values_TE.shape[1])
        return values_TE if self.training else values_TE[:, [*self.permutation, *rest]]
