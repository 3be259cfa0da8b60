"""A model's generation settings can be used, and saved again: transformers reads some that it refuses to use or to write.

Values for sampling without ``do_sample``, as Llama-2-chat has them, for beams without beams, and the like have no effect. They are dropped,
so that the model answers as before.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from evomoe.support.errors import foreign
from evomoe.support.parse_json import parse_json
from evomoe.support.text import shortened

logger = logging.getLogger(__name__)

_OF_SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("early_stopping", "length_penalty")
_OF_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")
_FURTHER_IDS = ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_FLAGS = (
    "do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "token_healing", *_OF_OUTPUTS, "return_dict_in_generate",
    "disable_compile", "is_assistant", "use_mtp",
)  # fmt: skip
_OF_ASSISTANTS = (
    "num_assistant_tokens", "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
    "target_lookbehind",
)  # fmt: skip
_LENGTHS = {
    **dict.fromkeys(("max_length", "max_new_tokens", "max_cache_len", "prefill_chunk_size", *_OF_ASSISTANTS), 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "top_k"), 0),
}
"""Settings that count tokens, with the least of each."""
_SHARES = ("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that are shares of the probability."""
_MANY = 1024
"""Beams, or answers to one question, that no memory holds."""
_NOT_TRIED = (
    *_LENGTHS.keys() - {"top_k", "no_repeat_ngram_size"}, "max_time", "stop_strings", "cache_implementation", "cache_config",
    "compile_config", "use_mtp", "is_assistant", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_ensemble_weight", "speculation_type", "exponential_decay_length_penalty",
)  # fmt: skip
"""What a small model is not asked with: nothing of it says which tokens may come next."""


def load_settings(source: str | Path) -> GenerationConfig | None:
    """The generation settings in a model's folder, such that they can be saved again; None if there are none.

    Raises:
        ValueError: they cannot be read, or never be saved.
    """
    file = Path(source) / "generation_config.json"
    try:
        settings = GenerationConfig.from_pretrained(source)
    except OSError as error:
        if file.exists():
            raise ValueError(f"{source}: its generation_config.json cannot be read: {foreign(error)}") from error
        return None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(source, error, _at_fault(_written(file), lambda values: GenerationConfig(**values))) from error
    for name, value in vars(settings).items():
        is_one = name.endswith("_token_id")
        ids = value if isinstance(value, list) else [value]
        if (is_one or name in _FURTHER_IDS) and (is_one and not ids or not all(type(one) in (int, type(None)) for one in ids)):
            raise ValueError(f"{source}: its generation_config.json has {name} {value!r}; tokens are named by whole numbers.")
        if name in ("bos_token_id", "pad_token_id") and isinstance(value, list):
            raise ValueError(f"{source}: its generation_config.json has {name} {value!r}; it must be one whole number.")
        if (settings.do_sample or name not in _OF_SAMPLING) and (fault := _fault(name, value)):  # else it is dropped below
            raise ValueError(f"{source}: its generation_config.json has {name} {shortened(repr(value))}, which must be {fault}.")
    known = vars(GenerationConfig())
    if unknown := sorted(name for name in _written(file) if name not in known and not name.startswith("_")):
        near = get_close_matches(unknown[0], known, 1)
        logger.warning(
            "%s: its generation_config.json has settings that transformers does not know: %s.%s",
            source,
            ", ".join(unknown),
            f" Did you mean {near[0]}?" if near else "",
        )
    make_savable(settings, source)
    return settings


def _written(file: Path) -> dict[str, Any]:
    """What stands in a file of settings; nothing if it holds no settings, or is not on this machine."""
    try:
        values = parse_json(file.read_text(encoding="utf-8"), file.name)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _at_fault(values: dict[str, Any], use: Callable[[dict[str, Any]], Any], names: Iterable[str] | None = None) -> str:
    """The settings without each of which all others could be used, with their values; empty if there is none.

    Args:
        use: raises an error if settings cannot be used.
        names: those that may be at fault, by default all.
    """
    found = []
    for name in values if names is None else names:
        try:
            use({other: value for other, value in values.items() if other != name})
        except Exception:  # whatever a value leads to
            continue
        found.append(f"{name} {shortened(repr(values[name]))}")
    return ", ".join(found)


def _fault(name: str, value: Any) -> str:
    """What a setting would have to be; empty if it may be as it is."""
    if value is None:
        return ""
    if name in _FLAGS:
        return "" if isinstance(value, bool) else "true or false"
    if name in _LENGTHS:
        return "" if type(value) is int and value >= _LENGTHS[name] else f"a whole number of at least {_LENGTHS[name]}"
    if name in ("num_beams", "num_return_sequences"):
        return "" if type(value) is int and 1 <= value <= _MANY else f"a whole number from 1 to {_MANY}"
    if name in _SHARES:
        return "" if type(value) in (int, float) and 0 <= value <= 1 else "a number from 0 to 1"
    if name == "exponential_decay_length_penalty":
        numbers = value if isinstance(value, list | tuple) and len(value) == 2 else ["none"]
        return (
            ""
            if all(type(one) in (int, float) and 0 <= one < math.inf for one in numbers)
            else "two numbers: a start and a factor"
        )
    if name == "max_time":
        return "" if type(value) in (int, float) and 0 < value < math.inf else "a positive number of seconds"
    if name == "stop_strings":
        words = [value] if isinstance(value, str) else value
        return (
            "" if isinstance(words, list) and all(isinstance(one, str) and one for one in words) else "words, or a list of words"
        )
    return ""


def check_usable(settings: GenerationConfig | None, config: PreTrainedConfig, source: str | Path) -> None:
    """A model's settings are tried: a tiny model with as many tokens answers with them.

    Raises:
        ValueError: they name a token beyond the model's embedding, at which no answer would end, or ``generate`` refuses them.
    """
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(rows, int):
        return
    for name in (*_IDS, *_FURTHER_IDS):
        value = getattr(settings, name, None)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and one >= rows:
                raise ValueError(
                    f"{source}: its generation_config.json has {name} {one}, and the model's embedding has rows up to {rows - 1}."
                )
    if settings is not None:
        _try(settings, rows, source)


def _try(settings: GenerationConfig, rows: int, source: str | Path) -> None:
    """Raises ValueError, with the setting that is at fault, if ``generate`` cannot answer."""
    usual = vars(GenerationConfig())
    given = {
        name: value
        for name, value in vars(settings).items()
        if name in usual and name not in _NOT_TRIED and not name.startswith(("_", "transformers"))
    }
    chosen = [name for name, value in given.items() if value != usual[name] and name not in (*_IDS, "do_sample")]
    if not chosen:
        return
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.random.fork_rng(devices=[]), _quiet():
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes, **{name: given[name] for name in _IDS})).eval()
        words = torch.zeros(1, 4, dtype=torch.long)

        def answer(values: dict[str, Any]) -> None:
            model.generation_config = GenerationConfig(**copy.deepcopy(values), max_new_tokens=2)
            generate: Any = model.generate
            generate(words, attention_mask=torch.ones_like(words))

        try:
            answer(given)
        except Exception as error:  # whatever a value leads to
            named = _at_fault(given, answer, chosen) or ", ".join(chosen)
            raise ValueError(
                f"{source}: its generation_config.json has {named}, with which no answer can be made: {foreign(error)}"
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block transformers says nothing of what was not asked for."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)


def make_savable(settings: GenerationConfig, source: str | Path) -> None:
    """Drops the values that have no effect.

    Raises:
        ValueError: what is left cannot be saved.
    """
    idle = [*_OF_SAMPLING] if not settings.do_sample else []
    idle += _OF_BEAMS if settings.num_beams in (None, 1) else ()
    idle += _OF_OUTPUTS if not settings.return_dict_in_generate else ()
    idle += ("cache_implementation", "cache_config") if settings.use_cache is False else ()
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
        "%s: its generation settings have %s, which have no effect without do_sample or num_beams, return_dict_in_generate or a cache, and cannot be saved; left out.",
        source,
        ", ".join(dropped),
    )


def make_model_savable(model: PreTrainedModel, source: str | Path) -> None:
    """The same for a loaded model."""
    if isinstance(settings := getattr(model, "generation_config", None), GenerationConfig):
        make_savable(settings, source)


def _refusal(source: str | Path, error: Exception, named: str = "") -> ValueError:
    at = f" (at fault: {named})" if named else ""
    reason = shortened(" ".join(str(error).replace("`", "'").split()), 250)
    return ValueError(f"{source}: its generation_config.json could never be saved again; mend it: {reason}{at}")
