"""Loading models and processors through transformers' auto classes, dense or sparse, with errors that say what to do."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from evomoe.model.configuration import EvoMoEConfig, MoEConfig
from evomoe.model.families import sparse_config
from evomoe.model.generation_settings import check_usable
from evomoe.model.loaded_weights import load_checked
from evomoe.model.picture_tokens import check_picture_tokens
from evomoe.model.possible import check_pictures, check_sizes, check_vocabulary, making
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import check_convertible
from evomoe.support import hf
from evomoe.support.errors import OptionError, foreign
from evomoe.support.names import not_on_hub, refuse_missing, refuse_special
from evomoe.support.parse_json import shallow
from evomoe.support.processor import Processor, tokenizer_of
from evomoe.support.text import shortened

_SLACK = 10**9
"""Bytes by which a model may always be larger than what is stored of it."""


def auto_model(config: PreTrainedConfig) -> type:
    """The auto class that knows the model: image-text-to-text, or causal language modelling for a text-only model.

    Raises:
        ValueError: neither knows it.
    """
    autos = (AutoModelForImageTextToText, AutoModelForCausalLM)
    known = [auto for auto in autos if type(config) in hf.model_classes(auto)]
    remote = [auto for auto in autos if auto.__name__ in (getattr(config, "auto_map", None) or {})]
    if known or remote:
        return [*known, *remote][0]
    raise ValueError(
        f"Models of type '{config.model_type}' are neither image-text-to-text nor causal language models to transformers."
    )


def takes_pictures(config: PreTrainedConfig) -> bool:
    """Whether the model is image-text-to-text, not text-only."""
    return auto_model(config) is AutoModelForImageTextToText


def load_config(source: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Loads the configuration of a folder or hub name, or the configuration file itself.

    Raises:
        ValueError: there is no such model, no way to it, this version of transformers does not know its family, or the
            mixture in it is of routers or losses that are not registered.
    """
    _check_files(source)
    if not (Path(source) / "config.json").is_file():
        inside = [file.parent for pattern in ("model", "*/model") for file in Path(source).glob(f"{pattern}/config.json")]
        if inside:
            raise ValueError(f"{source} is the folder of a run, not of a model; name {max(inside)}.")
    if (Path(source) / "adapter_config.json").is_file():
        raise ValueError(
            f"{source} holds a LoRA adapter, which would be lost. Merge it first: load the model with peft, and save what "
            "`merge_and_unload()` gives."
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise ValueError(f"{source}: there is no model in it, for it has no config.json.")
    try:
        with making(source, "its config.json cannot be read"), shallow(source):
            check_sizes(PreTrainedConfig.get_config_dict(source)[0], source)
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if config.model_type == "llava" and hasattr(config, "mm_vision_tower"):
            raise ValueError(
                f"{source} is in LLaVA's own format, which transformers does not read. Take the converted model, such as "
                "llava-hf/llava-1.5-7b-hf, or convert it with transformers' convert_llava_weights_to_hf.py."
            )
        if isinstance(config, EvoMoEConfig):
            config.moe  # noqa: B018  (it checks itself)
        return config
    except OptionError as error:
        raise ValueError(f"{source}: its config.json has {error}") from error
    except ValueError as error:
        if hf.UNKNOWN_FAMILY not in str(error.__cause__ or error):
            raise
        raise ValueError(
            f"{source}: transformers {transformers.__version__} does not know this model family; pip install --upgrade transformers."
        ) from error
    except OSError as error:
        if Path(source).exists():
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{source}: there is no model in it: {reason}") from error
        raise ValueError(not_on_hub(source, "model", error)) from error


def _check_files(source: str | Path) -> None:
    """Refuses a folder that is not there, or that holds a pipe: transformers would wait for it, or act as if it were not there."""
    if not str(source).strip():
        raise ValueError("the model's name is empty; name a folder, or a model of the hub.")
    refuse_missing(source)
    refuse_special(source)
    for file in Path(source).iterdir() if Path(source).is_dir() else ():
        refuse_special(file)


def load_model(source: str | Path, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads a model from a folder or hub name; ``dtype`` is "auto" or the name of a torch dtype.

    Raises:
        ValueError: there is no such model, or its weights are not whole.
    """
    config = load_config(source, trust_remote_code)
    precision = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        with (
            making(source, "no model can be made of its config.json and weights", UnpicklingError, SafetensorError),
            shallow(source),
        ):
            if not trust_remote_code:
                _check_room(config, source)
            model = load_checked(auto_model(config), source, dtype=precision, trust_remote_code=trust_remote_code)
            check_usable(getattr(model, "generation_config", None), config, source)
            return model
    except UnpicklingError as error:
        raise ValueError(
            f"{source}: its weights are a pickle that holds more than tensors, which could run any code. Take safetensors instead."
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{source}: its weights cannot be read ({error}); the file is truncated or damaged.") from error
    except OSError as error:
        if not Path(source).is_dir():
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{source}: its weights cannot be loaded: {reason} Name a folder that save_pretrained wrote.") from error


def _check_room(config: PreTrainedConfig, source: str | Path) -> None:
    """Raises ValueError if a folder's configuration describes a model far larger than its weights, which would fill the memory.

    Four bits are the least that a parameter is stored in.
    """
    stored = sum(file.stat().st_size for file in Path(source).glob("*.safetensors")) if Path(source).is_dir() else 0
    if stored and (described := empty_model(config).num_parameters()) // 2 > 2 * stored + _SLACK:
        raise ValueError(
            f"{source}: its config.json describes a model of {described / 1e9:.1f} B parameters, and its weights have "
            f"{stored / 1e9:.3f} GB; they belong to different models."
        )


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without weights."""
    with making(config.name_or_path or f"a model of type '{config.model_type}'"), torch.device("meta"):
        return auto_model(config).from_config(config)


def empty_models(dense: PreTrainedConfig, placement: str | Sequence[int], **moe: Any) -> tuple[PreTrainedModel, SparseModel]:
    """A dense configuration's model and the sparse model that it would become, both without weights.

    Args:
        dense: configuration of the dense model.
        placement: which decoder layers become sparse, as in ``evomoe.recipe.placement``.
        moe: further fields of ``MoEConfig``.

    Raises:
        UnsupportedModelError: the model is sparse already, or has no FFN that the rule can find.
        ValueError: an option is wrong; the message names it.
    """
    model = empty_model(dense)
    check_convertible(model)
    sparse = empty_model(sparse_config(dense, MoEConfig.for_model(dense, placement, **moe)))
    assert is_sparse(sparse)
    return model, sparse


def load_processor(source: str | Path, trust_remote_code: bool = False) -> Processor:
    """Loads the processor; for a text-only model its tokenizer.

    Raises:
        ValueError: there is none that transformers can load, a package that it needs is missing, or it is another model's: its tokens or
            the number of image tokens that it makes of a picture are not this one's.
    """
    _check_files(source)
    processor = _load_processor(source, trust_remote_code)
    check_pictures(processor, source)
    if not Path(source).is_dir() or (Path(source) / "config.json").is_file():
        config = load_config(source, trust_remote_code)
        check_vocabulary(processor, config, source)
        if takes_pictures(config):
            if tokenizer_of(processor) is processor:
                raise ValueError(
                    f"{source}: its processor is a {type(processor).__name__}, which takes no pictures, and its model does. Save the model's "
                    "own processor into it; processor_config.json or preprocessor_config.json names its class."
                )
            check_picture_tokens(processor, empty_model(config), source)
    return processor


def _load_processor(source: str | Path, trust_remote_code: bool) -> Processor:
    try:
        with shallow(source):
            return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except ImportError as error:
        if hf.NEEDS_TORCHVISION in str(error):
            raise ValueError(
                f"{source}: its processor takes videos too and needs torchvision: pip install 'evomoe[video]' (in a clone -e '.[video]'). "
                "A torch that is not PyPI's wants the torchvision of its own index."
            ) from error
        raise ValueError(f"{source}: its processor cannot be loaded: {' '.join(str(error).split())}") from error
    except Exception as error:  # tokenizers raises Exception itself
        with making(source):
            is_text_only = not takes_pictures(load_config(source, trust_remote_code))
        if is_text_only:  # its tokenizer may once have been a processor's
            with contextlib.suppress(Exception):
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
                if tokenizer is not None:
                    return tokenizer
        raise ValueError(
            f"{source} has no processor that transformers can load ({shortened(foreign(error), 300)}). Save the model's processor into the same folder."
        ) from error
