"""The model card beside a saved model's weights, which the hub shows."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import ModelCardData, metadata_load
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.configuration import MODEL_TYPE, EvoMoEConfig
from evomoe.model.structure import image_token_ids
from evomoe.support.parse_json import read_json
from evomoe.support.text import markdown_table
from evomoe.support.version import __version__

logger = logging.getLogger(__name__)

CARD = "README.md"
_USE = """```python
import evomoe  # installed from its clone; registers the model's class
from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("<this repository or folder>")
processor = AutoProcessor.from_pretrained("<this repository or folder>")
```"""


def card_of_folder(folder: str | Path) -> str | None:
    """The model card in the folder of a saved EvoMoE model; None for any other folder or a hub name."""
    card, config = Path(folder) / CARD, Path(folder) / "config.json"
    if not str(folder) or not card.is_file() or not config.is_file():
        return None
    is_sparse = read_json(config).get("model_type") == MODEL_TYPE
    return card.read_text(encoding="utf-8") if is_sparse else None


def model_card(
    config: EvoMoEConfig,
    class_name: str,
    base_model: str,
    facts: Sequence[tuple[str, str]] = (),
    sections: Mapping[str, str] | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """The model card of a sparse model, with the header that the hub reads.

    Args:
        config: of the model.
        class_name: its class.
        base_model: folder or hub name of the dense model; a folder's card tells the licence.
        facts: further rows of the table, such as parameter counts.
        sections: further Markdown by heading, such as how it was trained.
        datasets: names of what it was trained on.
    """
    moe, is_text_only = config.moe, not image_token_ids(config)
    licence: Any = _licence(base_model)  # the hub takes several too, which the header's class does not say
    on_hub = bool(base_model) and not Path(base_model).exists()
    header = ModelCardData(
        base_model=base_model if on_hub else None,
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation" if is_text_only else "image-text-to-text",
        tags=["evomoe", "mixture-of-experts"],
        datasets=list(datasets) or None,
    )
    rows = [
        ("base model", f"{base_model or 'unknown'} ({moe.base_model_type})"),
        ("class", class_name),
        ("experts", f"{moe.num_experts}, {moe.num_experts_per_tok} per token" + (", one shared" if moe.shared_expert else "")),
        ("MoE layers", ", ".join(map(str, moe.moe_layers))),
        ("experts made by", moe.origin),
        ("router, gate", f"{moe.router_told}, {moe.gate}"),
        *facts,
        (
            "licence",
            " ".join((", ".join(licence) if isinstance(licence, list) else licence or "").split()) or "that of the base model",
        ),
    ]
    auto = "AutoModelForCausalLM" if is_text_only else "AutoModelForImageTextToText"
    body = [
        "# " + (f"{Path(base_model).name} as EvoMoE" if base_model else class_name),
        "A mixture of experts whose router EvoMoE replaced."
        if moe.attached
        else "A dense model turned into a sparse mixture of experts with EvoMoE.",
        markdown_table(["", ""], [list(row) for row in rows]),
        _USE.format(auto=auto),
        *(f"## {heading}\n\n{text}" for heading, text in (sections or {}).items()),
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"


def exported_card(model: PreTrainedModel, checkpoint: str, what: str, told: str) -> str:
    """The card of a model that needs no evomoe, with the header that the hub reads and the licence of what it was made from.

    Args:
        model: the exported one.
        checkpoint: folder or hub name of the sparse model.
        what: what of that model it is.
        told: how far it was compared.
    """
    header = ModelCardData(
        license=cast(Any, _licence(checkpoint)),
        library_name="transformers",
        pipeline_tag="image-text-to-text" if image_token_ids(model.config) else "text-generation",
    )
    name = Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint
    text = (
        f"# {what[0].upper()}{what[1:]} of {name}\n\n"
        f"A {type(model).__name__} of transformers, written by evomoe {__version__}, which you do not need to load it. {told}\n"
    )
    return f"---\n{header.to_yaml()}\n---\n\n{text}"


def _licence(base_model: str) -> str | list[str] | None:
    """The licence that a base model's card names, or the licences; None if it names none, or none that is a name."""
    card = Path(base_model) / CARD
    if not base_model or not card.is_file():
        return None
    try:
        licence = (metadata_load(card) or {}).get("license")
    except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
        logger.warning("%s cannot be read, so the model card names no licence: %s", card, error)
        return None
    names = licence if isinstance(licence, list) else [licence]
    if licence is None or (names and all(isinstance(name, str) for name in names)):
        return licence
    logger.warning("%s names a licence that is no name (%.80r), so the model card names none.", card, licence)
    return None
