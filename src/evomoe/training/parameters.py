"""What a model has, runs per token and trains in each stage, before and after conversion. Loads no weights.

Implements: Table 8 (before and after conversion).
"""

from dataclasses import asdict

from transformers.modeling_utils import PreTrainedModel

from evomoe.model.accounting import count_parameters
from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.families import dense_config
from evomoe.model.loading import empty_model, empty_models, load_config
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import Part, text_config
from evomoe.recipe.named_recipes import EVOMOE
from evomoe.recipe.options import STAGES, MoEOptions
from evomoe.recipe.placement import parse_placement
from evomoe.support.text import markdown_table, readable
from evomoe.training.checked_run import contradictions
from evomoe.training.trainable import names_in

PARTS: dict[Part, str] = {"text": "language model", "projector": "projector", "vision": "vision tower"}


def describe_parameters(
    source: str, options: MoEOptions | None = None, placement: str = "alternating", trust_remote_code: bool = False
) -> str:
    """Tables of parameters: of every part before and after conversion, per token, and in each stage of the default recipe.

    Args:
        source: folder, hub name or config.json. A dense model is counted, and the sparse model that it would become. Of an
            EvoMoE, the sparse model is counted, and the dense model that it was made from.
        options: the mixture that a dense model would become (default: the paper's).
        placement: which of its decoder layers, as on the command line.
        trust_remote_code: run code from the model's repository.

    Raises:
        ValueError: there is no such model, it cannot be converted, or an option is wrong or contradicts an EvoMoE.
    """
    options = options or MoEOptions()
    config = load_config(source, trust_remote_code)
    if isinstance(config, EvoMoEConfig):
        _check_own(source, config, options, placement)
        dense, sparse = empty_model(dense_config(config)), empty_model(config)
        assert is_sparse(sparse)
        verb = "became"
    else:
        dense, sparse = empty_models(config, parse_placement(placement), **asdict(options))
        verb = "would become"
    moe = sparse.config.moe
    lines = [
        f"{source}: {type(dense).__name__} {verb} {type(sparse).__name__}",
        f"{moe.num_experts} experts, {moe.num_experts_per_tok} per token{', and a shared one' if moe.shared_expert else ''}, in "
        f"{len(moe.moe_layers)} of {text_config(config).num_hidden_layers} layers ({', '.join(map(str, moe.moe_layers))}); router "
        f"{moe.router}",
        "",
        parts_table(dense, sparse),
        "",
        stages_table(dense, sparse),
        "",
        "A token runs the experts it is sent to and all else; of a router with a half for images and one for text, both count.",
    ]
    if count_parameters(dense, (), "text").total == count_parameters(dense, ()).total:
        lines.append("Text only: there is no projector and no vision tower, and every token is a text token.")
    return "\n".join(lines)


def parts_table(dense: PreTrainedModel, sparse: SparseModel) -> str:
    """Parameters by part: of the dense model, of the sparse one, and of those that run for a token; the router's share."""
    rows = []
    for part, name in PARTS.items():
        before, after = count_parameters(dense, (), part), count_parameters(sparse, (), part)
        if after.total:
            rows.append([name, *map(readable, (before.total, after.total, after.activated))])
    before, after = count_parameters(dense, ()), count_parameters(sparse, ())
    rows.append(["all", *map(readable, (before.total, after.total, after.activated))])
    shares = [f"{readable(after.router)} ({after.router / of:.2%})" for of in (after.total, after.activated)]
    rows.append(["of which router", "0", *shares])
    return markdown_table(["parameters", "before" if sparse.config.moe.attached else "dense", "EvoMoE", "run per token"], rows)


def stages_table(dense: PreTrainedModel, sparse: SparseModel) -> str:
    """What trains in each stage, of the model that the stage trains; of the recipe's parts those that the model has."""
    rows = []
    stages = {3: STAGES[3]} if sparse.config.moe.attached else STAGES
    for stage, title in stages.items():
        model = sparse if stage == 3 else dense
        names = {p: names_in(model, p, sparse.config.moe.moe_layers) for p in EVOMOE.stage(stage).train.split("+")}
        what = "+".join(part for part in names if names[part]) or f"nothing: no {' or '.join(names)}"
        counts = count_parameters(model, set().union(*names.values()))
        rows.append([f"{stage} ({title}): {what}", readable(counts.trained), f"{counts.trained / counts.total:.2%}"])
    return markdown_table(["stage: what trains", "parameters", "of its model"], rows)


def _check_own(source: str, config: EvoMoEConfig, options: MoEOptions, placement: str) -> None:
    """Refuses options that say something else than an EvoMoE's own configuration does; defaults say nothing."""
    if wrong := contradictions(config, options, placement):
        named = ", ".join(f"`{name}`" for name in wrong)
        raise ValueError(f"{source} is an EvoMoE already and is counted as its configuration says; leave out {named}.")
