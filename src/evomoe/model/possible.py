"""A configuration of which no model can be made, or that does not go with its tokenizer, is refused in a sentence.

What would take all memory, or all time, is refused by its size, before a model is made of it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.configuration_utils import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from evomoe.support.errors import OptionError
from evomoe.support.parse_json import parse_json
from evomoe.support.processor import Processor, know_rows, tokenizer_of
from evomoe.support.text import counted, kind_of, shortened

_MOST = {"layers": 10_000, "depth": 10_000, "experts": 10_000, "heads": 10_000, "size": 10**8, "dim": 10**8, "channels": 10**6}
"""By the last word of a field's name: no model has more."""
_WIDEST = 20_000
"""Pixels of a side to which no processor scales a picture."""
_OF_FIELD = re.compile(r"\w+Error: (Validation error for field '\w+'|Class validation error for validator '\w+'): \w+Error: ")
"""What transformers puts before the reason why a field's value is wrong."""
_QUOTED = re.compile(r"['\"`](\w[\w.+-]*)['\"`]")
_LEAST = {
    **dict.fromkeys(
        (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "patch_size",
            "image_size", "num_channels", "num_heads", "embed_dim", "depth", "max_position_embeddings",
        ),
        1,
    ),
    "intermediate_size": 0,
}  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What families call the number of their experts."""
_OF_EACH_TEXT = ("pad_token_id", "bos_token_id", "eos_token_id")
_STRATEGIES = ("default", "full")
"""What LLaVA's processors know to do with the tower's first feature; they take any other word for the second."""


def check_sizes(values: Mapping[str, Any], source: str | Path, part: str = "") -> None:
    """Raises ValueError for a value in a configuration that no model has; ``part`` is which configuration within it."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: its config.json holds {kind_of(values)}, and must hold fields by name.")
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in ("dtype", "torch_dtype"):  # which may name one for each part
            check_sizes(value, source, f"{part}{name}.")
        if fault := _fault(str(name), value):
            raise ValueError(f"{source}: its config.json has {part}{name} {shortened(repr(value))}{fault}.")
    _check_layers_of_tower(values, source)
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if type(heads) is int and type(groups) is int and heads % groups:
        raise ValueError(
            f"{source}: its config.json has {part}num_attention_heads {heads}, no multiple of num_key_value_heads {groups}."
        )
    taken, experts = values.get("num_experts_per_tok"), next((n for n in map(values.get, _EXPERTS) if type(n) is int), None)
    if taken is not None and experts and not (type(taken) is int and 1 <= taken <= experts):
        raise ValueError(
            f"{source}: its config.json has {part}num_experts_per_tok {shortened(repr(taken))}, which must lie between 1 and the number "
            f"of its experts, {experts}."
        )
    for one, bound, limit in (("patch_size", "image_size", 0), ("pad_token_id", "vocab_size", 1)):
        value, most = values.get(one), values.get(bound)
        if bound == "vocab_size" and "text_config" in values:
            continue  # the language model's own has the say
        if type(value) is int and type(most) is int and value > most - limit:
            raise ValueError(f"{source}: its config.json has {part}{one} {value}, too large for its {bound} {most}.")


def _fault(name: str, value: Any) -> str:
    """What a field's value would have to be, to be put behind it; empty if it may be as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("text_config", "vision_config") or value is not None and (name == "moe" or name.endswith("_config")):
        return "" if isinstance(value, Mapping) else ", which must be a configuration of its own"
    if name == "model_type":
        return "" if isinstance(value, str) else ", which must be the name of a family of models"
    if name in ("dtype", "torch_dtype") and not (value is None or value == "auto" or isinstance(value, Mapping)):
        known = isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)
        return "" if known else ", which must be the name of a torch dtype, such as 'bfloat16'"
    if (
        name == "quant_method"
        and value is not None
        and not any(f"{known}_".startswith(f"{value}_") for known in AUTO_QUANTIZATION_CONFIG_MAPPING)
    ):
        return f", a quantization that transformers {transformers.__version__} does not know"
    if name.endswith(("_token_id", "_token_index")) and isinstance(value, str):
        return ", which must be a token's number"
    if name.endswith("dropout") and is_number and not 0 <= value <= 1:
        return ", which must lie between 0 and 1"
    if name.endswith("_eps") and is_number and not 0 <= value < math.inf:
        return ", which must not be negative"
    if name in ("rope_theta", "factor") and is_number and not 0 < value < math.inf:
        return ", which must be a positive number"
    if name in _LEAST and isinstance(value, str):
        return ", which must be a whole number"
    if type(value) is not int:
        return ""
    most, least = _MOST.get(name.rpartition("_")[2], value), _LEAST.get(name, value)
    if value > most:
        return f"; no model has more than {most}"
    return f", which must be at least {least}" if value < least else ""


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
    mean, most = getattr(own, "image_mean", None), 1 if getattr(own, "do_rescale", True) else 255
    means = mean if isinstance(mean, list | tuple) else [mean]
    if mean is not None and not all(isinstance(one, int | float) and 0 <= one <= most for one in means):
        raise ValueError(
            f"{source}: its processor has image_mean {shortened(repr(mean))}, which must be numbers from 0 to {most}."
        )
    patch = getattr(processor, "patch_size", None)
    if type(patch) is int and patch < 1:
        raise ValueError(f"{source}: its processor has patch_size {patch}, which must be at least 1.")
    strategy = getattr(processor, "vision_feature_select_strategy", None)
    if strategy is not None and strategy not in _STRATEGIES:
        raise ValueError(
            f"{source}: its processor has vision_feature_select_strategy {strategy!r}; choose {' or '.join(_STRATEGIES)}."
        )
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
        reason = _OF_FIELD.sub("", reason)
        fields = _fields_of(reason, source)
        where = f". Look at its config.json: {', '.join(fields)}." if fields else ""
        raise ValueError(
            f"{source}: {what}: {shortened(reason, 300).rstrip('.') if fields else shortened(reason, 300)}{where}"
        ) from error


def _fields_of(reason: str, source: str | Path) -> list[str]:
    """The fields of a folder's configuration that another program's error quotes, by their names or their words."""
    try:
        values = parse_json((Path(source) / "config.json").read_text(encoding="utf-8"), "config.json")
    except (OSError, ValueError):
        return []
    leaves = [*_leaves(values)]
    quoted = set(_QUOTED.findall(reason))
    words = [(path, value) for path, value in leaves if isinstance(value, str) and value in quoted]
    named = [(path, value) for path, value in leaves if path.rpartition(".")[2] in quoted]
    exact = [(path, value) for path, value in named if repr(value) in reason]
    return [f"{path} {shortened(repr(value))}" for path, value in (exact or named or words)][:3]


def _leaves(values: Any, part: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        yield f"{part}{name}", value
        yield from _leaves(value, f"{part}{name}.")


def check_vocabulary(processor: Processor, config: PreTrainedConfig, source: str | Path) -> None:
    """Tokens that every text may have must have a row in the model's embedding; of others, each text with one is refused later.

    Raises:
        ValueError: a token that ends, fills or begins texts, or one that stands for pictures, has none.
    """
    text = config.get_text_config(decoder=True)
    rows = getattr(text, "vocab_size", None)
    tokenizer: Any = tokenizer_of(processor)
    if not isinstance(rows, int) or not hasattr(tokenizer, "get_vocab"):
        return
    if max(tokenizer.get_vocab().values(), default=-1) >= rows:
        know_rows(processor, rows)
    own = [("config.json", name, getattr(config, name, None)) for name in ("image_token_id", "video_token_id")]
    own += [("config.json", name, getattr(text, name, None)) for name in _OF_EACH_TEXT]
    own += [("tokenizer", name, getattr(tokenizer, name, None)) for name in _OF_EACH_TEXT]
    for owner, name, number in own:
        for one in number if isinstance(number, list) else [number]:
            if type(one) is int and (one >= rows or (one < 0 and name.startswith(("image", "video")))):  # -1 is no padding
                raise ValueError(
                    f"{source}: its {owner} has {name} {one}, and the model's embedding has rows up to {rows - 1} (vocab_size {rows}). Take "
                    "the model's own tokenizer, or give the model more rows with `resize_token_embeddings` and save both."
                )
