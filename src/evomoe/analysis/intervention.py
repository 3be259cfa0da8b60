"""What is changed in a sparse model while it answers, as data. Needs neither torch nor transformers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Intervention:
    """What a model's routers do while it answers, in place of what they learnt. ``interventions.applied`` does it to a model.

    Attributes:
        expert: this one alone answers, from 0.
        shuffle: seed of a permutation of each router's outputs.
        experts_per_token: how many (real) experts a token has, in place of what was trained.
        shuffle_importance: seed by which AnyExperts' importance goes to other tokens than it was estimated for.
    """

    expert: int | None = None
    shuffle: int | None = None
    experts_per_token: float | None = None
    shuffle_importance: int | None = None

    def changes(self) -> dict[str, float]:
        """What is changed, by name; nothing for a model that answers with its own routers."""
        return {name: value for name, value in vars(self).items() if value is not None}
