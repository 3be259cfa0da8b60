"""What each number of an analysis is called and means, for reports and files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """One row of ``MEANINGS``.

    Attributes:
        group: what it is about: uniformity, rigidity or balance.
        heading: of its column.
        text: what it says, and which way is good.
        digits: how many are shown after the point.
    """

    group: str
    heading: str
    text: str
    digits: int = 3


MEANINGS = {
    "cka": Meaning(
        "uniformity",
        "CKA",
        "linear CKA of two experts' outputs on the same tokens, mean over the pairs: 1 when they compute the same, lower is more "
        "diverse; n/a where outputs do not vary",
        digits=4,
    ),
    "output_cosine": Meaning(
        "uniformity",
        "cosine of outputs",
        "the cosine of the same outputs, token by token: 1 when they point the same way",
        digits=4,
    ),
    "task_vector_cosine": Meaning(
        "uniformity",
        "cosine of task vectors",
        "the cosine of two experts' ways from the dense model of Stage I: 1 when they went the same way, however far; n/a where "
        "fewer than two have moved",
    ),
    "symmetry_gradient": Meaning(
        "uniformity",
        "symmetry gradient",
        "how strongly the language loss asks the router to tell the experts apart: 0 for identical experts, 1 at most",
    ),
    "logit_overlap": Meaning(
        "rigidity",
        "overlap of logits",
        "the area that the densities of an expert's logit for image and for text tokens share, mean over the experts: 1 when they "
        "are alike, 0 when they are apart",
    ),
    "nmi": Meaning(
        "rigidity",
        "NMI",
        "the share of the modality's entropy that a token's expert tells, corrected for chance: 0 for a router that is blind to "
        "the modality, 1 for one that separates the two",
    ),
    "jensen_shannon": Meaning(
        "rigidity",
        "Jensen-Shannon, bits",
        "the divergence of the loads by image and by text tokens: 0 when they are equal, 1 when disjoint",
    ),
    "changed_image": Meaning(
        "rigidity", "image tokens changed", "the share of image tokens that go to another expert when only the picture is swapped"
    ),
    "changed_text": Meaning(
        "rigidity", "text tokens changed", "the share of text tokens that go to another expert when only the picture is swapped"
    ),
    "effective_experts": Meaning(
        "balance",
        "effective experts",
        "the effective number of real experts, exp(entropy of the load): all of them when each gets equally many tokens, 1 when one "
        "gets all; near 1 is bad, for the others are idle",
        digits=2,
    ),
    "load_variation": Meaning(
        "balance", "variation of load", "standard deviation of the experts' loads over their mean: 0 when equal"
    ),
    "dead_experts": Meaning("balance", "dead experts", "how many experts get less than a tenth of an equal share", digits=0),
    "experts_per_text_token": Meaning(
        "balance", "experts per text token", "real experts that a text token has, on average", digits=2
    ),
    "experts_per_image_token": Meaning(
        "balance", "experts per image token", "real experts that an image token has, on average", digits=2
    ),
}
"""By name, in the order of reports."""
