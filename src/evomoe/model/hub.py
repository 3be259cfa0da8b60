"""What lies beside a saved model's weights: its model card, and the module that imports evomoe for whoever has not.

A saved EvoMoE model is weights and a configuration, no code: after ``import evomoe``, transformers' auto classes load it, and
a process that did not import it gets transformers' error about the unknown model type ``evomoe``. With ``remote_code`` the
folder also holds a module of one line that imports the installed evomoe, and ``config.json`` points to it. transformers
runs that module only for those who say ``trust_remote_code=True``.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.configuration_utils import PreTrainedConfig

from evomoe.model.configuration import MODEL_TYPE, EvoMoEConfig
from evomoe.model.structure import image_token_ids
from evomoe.support.files import write_text
from evomoe.support.text import markdown_table

logger = logging.getLogger(__name__)

CARD = "README.md"
REMOTE_MODULE = "evomoe_auto"
_AUTO_MAP = {"AutoConfig": f"{REMOTE_MODULE}.AnyEvoMoEConfig"}
_REMOTE_CODE = '''"""Lets transformers load this EvoMoE model where evomoe is installed but not imported."""

from evomoe.auto import AnyEvoMoEConfig  # noqa: F401  (importing it registers EvoMoE's model classes)
'''
_USE = """```python
import evomoe  # installed from its clone; registers the model's class
from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("<this repository or folder>")
processor = AutoProcessor.from_pretrained("<this repository or folder>")
```"""


def set_remote_code(config: PreTrainedConfig, wanted: bool) -> None:
    """Lets a configuration point to the module that imports evomoe, or not."""
    if wanted:
        config.update({"auto_map": dict(_AUTO_MAP)})
    else:
        vars(config).pop("auto_map", None)


def has_remote_code(config: PreTrainedConfig) -> bool:
    """Whether a configuration points to that module."""
    return getattr(config, "auto_map", None) == _AUTO_MAP


def write_remote_module(folder: str | Path) -> None:
    """Writes the module that a configuration with remote code points to."""
    write_text(Path(folder) / f"{REMOTE_MODULE}.py", _REMOTE_CODE)


def card_of_folder(folder: str | Path) -> str | None:
    """The model card in the folder of a saved EvoMoE model; None for any other folder or a hub name."""
    card, config = Path(folder) / CARD, Path(folder) / "config.json"
    if not str(folder) or not card.is_file() or not config.is_file():
        return None
    is_sparse = json.loads(config.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE
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
    licence = _licence(base_model)
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
        ("router, gate", f"{moe.router}, {moe.gate}"),
        *facts,
        ("licence", licence or "that of the base model"),
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


def _licence(base_model: str) -> Any:
    """The licence that a base model's card names; None if its folder has no card that can be read, or it lies on the hub."""
    card = Path(base_model) / CARD
    if not base_model or not card.is_file():
        return None
    try:
        return ModelCard.load(card).data.get("license")
    except (ValueError, OSError, yaml.YAMLError) as error:
        logger.warning("%s cannot be read, so the model card names no licence: %s", card, error)
        return None
