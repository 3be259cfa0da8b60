"""Options under which each router does what is its own, where its defaults do not."""

from typing import Any

ROUTER_OPTIONS: dict[str, dict[str, Any]] = {
    "anyexperts": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "router_options": {"virtual": "identity", "num_virtual": 2, "rho": 0.4},
    },
    "top_p": {"gate": "probability"},
    "zero_computation": {"num_experts_per_tok": 2},
}
