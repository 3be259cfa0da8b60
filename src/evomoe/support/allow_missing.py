"""Whether models may load of which weights are missing. Needs neither torch nor transformers."""

ALLOW_MISSING = "EVOMOE_ALLOW_MISSING"
"""The environment variable behind ``--allow-missing-weights``: 1 lets them."""
