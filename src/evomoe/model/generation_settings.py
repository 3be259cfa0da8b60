"""A model's generation settings can be saved again: transformers reads some that it refuses to write.

Values for sampling without ``do_sample``, as Llama-2-chat has them, and for beams without beams, have no effect. They are dropped, so that
the model answers as before.
"""

import logging
from pathlib import Path

from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from evomoe.support.errors import foreign

logger = logging.getLogger(__name__)

_OF_SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("early_stopping", "length_penalty")


def load_settings(source: str | Path) -> GenerationConfig | None:
    """The generation settings in a model's folder, such that they can be saved again; None if there are none.

    Raises:
        ValueError: they cannot be read, or never be saved.
    """
    try:
        settings = GenerationConfig.from_pretrained(source)
    except OSError as error:
        if (Path(source) / "generation_config.json").exists():
            raise ValueError(f"{source}: its generation_config.json cannot be read: {foreign(error)}") from error
        return None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(source, error) from error
    for name, value in vars(settings).items():
        is_one = name.endswith("_token_id")
        ids = value if isinstance(value, list) else [value]
        if (is_one or name in ("suppress_tokens", "begin_suppress_tokens")) and not all(
            type(one) in (int, type(None)) for one in ids
        ):
            raise ValueError(f"{source}: its generation_config.json has {name} {value!r}; tokens are named by whole numbers.")
    make_savable(settings, source)
    return settings


def check_stops(settings: GenerationConfig | None, config: PreTrainedConfig, source: str | Path) -> None:
    """Raises ValueError if a model's settings name a token beyond its embedding, at which no answer would end."""
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(rows, int):
        return
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = getattr(settings, name, None)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and one >= rows:
                raise ValueError(
                    f"{source}: its generation_config.json has {name} {one}, and the model's embedding has rows up to {rows - 1}."
                )


def make_savable(settings: GenerationConfig, source: str | Path) -> None:
    """Drops the values that have no effect.

    Raises:
        ValueError: what is left cannot be saved.
    """
    idle = [*_OF_SAMPLING] if not settings.do_sample else []
    idle += _OF_BEAMS if settings.num_beams in (None, 1) else ()
    try:
        settings.validate(strict=True)
        return
    except (ValueError, TypeError):
        fresh = GenerationConfig()
        dropped = [name for name in idle if getattr(settings, name, None) != getattr(fresh, name, None)]
    for name in dropped:
        setattr(settings, name, getattr(fresh, name))
    try:
        settings.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise _refusal(source, error) from error
    logger.warning(
        "%s: its generation settings have %s, which have no effect without do_sample or num_beams, and cannot be saved; left out.",
        source,
        ", ".join(dropped),
    )


def make_model_savable(model: PreTrainedModel, source: str | Path) -> None:
    """The same for a loaded model."""
    if isinstance(settings := getattr(model, "generation_config", None), GenerationConfig):
        make_savable(settings, source)


def _refusal(source: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{source}: its generation_config.json could never be saved again; mend it: {foreign(error)}")
