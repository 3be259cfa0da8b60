"""A configuration of which no model can be made, or that does not go with its tokenizer, is refused in a sentence.

What would take all memory, or all time, is refused by its size, before a model is made of it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from evomoe.support.errors import OptionError
from evomoe.support.processor import Processor, tokenizer_of
from evomoe.support.text import counted

_MOST = {"layers": 10_000, "depth": 10_000, "experts": 10_000, "heads": 10_000, "size": 10**8, "dim": 10**8, "channels": 10**6}
"""By the last word of a field's name: no model has more."""
_WIDEST = 20_000
"""Pixels of a side to which no processor scales a picture."""
_NEVER_NONE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "patch_size",
)


def check_sizes(values: Mapping[str, Any], source: str | Path, part: str = "") -> None:
    """Raises ValueError for a size in a configuration that no model has; ``part`` is which configuration within it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            check_sizes(value, source, f"{part}{name}.")
        if str(name).endswith("dropout") and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"{source}: its config.json has {part}{name} {value}, which must lie between 0 and 1.")
        if name in ("text_config", "vision_config") and not isinstance(value, Mapping):
            raise ValueError(f"{source}: its config.json has {part}{name} {value!r}, which must be a configuration of its own.")
        if name.endswith("_eps") and isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{source}: its config.json has {part}{name} {value}, which must not be negative.")
        if name == "rope_theta" and isinstance(value, int | float) and not 0 < value < math.inf:
            raise ValueError(f"{source}: its config.json has {part}{name} {value}, which must be a positive number.")
        most = _MOST.get(str(name).rpartition("_")[2])
        if most is None or type(value) is not int:
            continue
        if value > most:
            raise ValueError(f"{source}: its config.json has {part}{name} {value}; no model has more than {most}.")
        if name in _NEVER_NONE and value < 1:
            raise ValueError(f"{source}: its config.json has {part}{name} {value}, which must be at least 1.")
    _check_layers_of_tower(values, source)
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if type(heads) is int and type(groups) is int and heads % groups:
        raise ValueError(
            f"{source}: its config.json has {part}num_attention_heads {heads}, no multiple of num_key_value_heads {groups}."
        )


def _check_layers_of_tower(values: Mapping[str, Any], source: str | Path) -> None:
    """Raises ValueError if the projector is to read a layer that the vision tower has not."""
    tower, chosen = values.get("vision_config"), values.get("vision_feature_layer")
    count = tower.get("num_hidden_layers") if isinstance(tower, Mapping) else None
    for layer in chosen if isinstance(chosen, list) else [chosen]:
        if type(layer) is int and type(count) is int and not -count - 1 <= layer <= count:
            raise ValueError(
                f"{source}: its config.json has vision_feature_layer {layer}; its vision tower has {counted(count, 'layer')}."
            )


def check_pictures(processor: Processor, source: str | Path) -> None:
    """Raises ValueError for pictures that no memory holds, or of which nothing is left."""
    own = getattr(processor, "image_processor", None)
    for name in ("size", "crop_size"):
        sides = getattr(own, name, None) or {}
        for side in ("height", "width"):
            value = sides.get(side) if isinstance(sides, Mapping) else getattr(sides, side, None)
            if type(value) is int and not 1 <= value <= _WIDEST:
                raise ValueError(f"{source}: its processor has {name} {side} {value}, which must lie between 1 and {_WIDEST}.")
    factor = getattr(own, "rescale_factor", None)
    if isinstance(factor, int | float) and not 0 < factor < math.inf:
        raise ValueError(f"{source}: its processor has rescale_factor {factor}, which must be a positive number.")
    spread = getattr(own, "image_std", None)
    if isinstance(spread, list | tuple) and not all(isinstance(one, int | float) and 0 < one < math.inf for one in spread):
        raise ValueError(f"{source}: its processor has image_std {list(spread)}, which must be positive numbers.")


@contextmanager
def making(source: str | Path, what: str = "no model can be made of its config.json", *told: type[Exception]) -> Iterator[None]:
    """Within the block a model is made of a configuration, or a processor of its files: errors of others become one sentence.

    Args:
        source: where the files are.
        what: what went wrong then.
        told: errors that the caller tells of.

    Raises:
        ValueError: anything but a lack of memory went wrong.
    """
    try:
        yield
    except (OptionError, OSError, ImportError, torch.OutOfMemoryError, *told):
        raise
    except Exception as error:
        if str(error).startswith(str(source)):  # one of our own sentences
            raise
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())
        raise ValueError(f"{source}: {what}: {reason[:300]}") from error


def check_vocabulary(processor: Processor, config: PreTrainedConfig, source: str | Path) -> None:
    """Raises ValueError if a token of the tokenizer has no row in the model's embedding."""
    text = config.get_text_config(decoder=True)
    rows = getattr(text, "vocab_size", None)
    tokenizer: Any = tokenizer_of(processor)
    if not isinstance(rows, int) or not hasattr(tokenizer, "get_vocab"):
        return
    token, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if last >= rows:
        raise ValueError(
            f"{source}: its tokenizer has '{token}' as number {last}, and the model's embedding has rows up to {rows - 1} (vocab_size "
            f"{rows}). Take the model's own tokenizer, or give the model more rows with `resize_token_embeddings` and save both."
        )
    own = [(name, getattr(config, name, None)) for name in ("image_token_id", "video_token_id")]
    own += [(name, getattr(text, name, None)) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    for name, number in own:
        for one in number if isinstance(number, list) else [number]:
            if type(one) is int and (one >= rows or (one < 0 and name.startswith(("image", "video")))):  # -1 is no padding
                raise ValueError(
                    f"{source}: its config.json has {name} {one}, and the model's embedding has rows up to {rows - 1}."
                )
