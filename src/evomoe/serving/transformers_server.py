"""``evomoe serve``: transformers' own server (OpenAI's protocol) with models of any kind that evomoe loads."""

import argparse
import inspect
import json
import socket
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers.utils.import_utils import is_serve_available

from evomoe.model.loading import load_config, load_model, load_processor, takes_pictures
from evomoe.model.structure import text_config
from evomoe.support.device import best_device, moved, prepare
from evomoe.support.errors import OptionError, foreign

if TYPE_CHECKING:
    from collections.abc import Iterator

MISSING = "The server needs more packages: pip install 'evomoe[serve]', or -e '.[serve]' in a clone."
OURS = (
    "force_model",
    "host",
    "port",
    "trust_remote_code",
    "dtype",
    "device",
    "non_blocking",
    "attn_implementation",
    "quantization",
)
"""Parameters of transformers' server that have an option of ``evomoe serve``, or say how it loads a model, which evomoe does."""


def serve(checkpoint: str, host: str, port: int, dtype: str = "auto", trust_remote_code: bool = False, **options: Any) -> Any:
    """Serves one model until it is interrupted; returns the server, for callers that let it run beside them.

    Args:
        options: further options of transformers' ``Serve``.

    Raises:
        ImportError: what the server needs is not installed.
        OptionError: the port is taken.
        ValueError: the model cannot be loaded.
    """
    if not is_serve_available():
        raise ImportError(MISSING)
    check_port(host, port)
    load_config(checkpoint, trust_remote_code)  # a wrong name shall not wait for the server
    with _our_models(checkpoint, dtype, trust_remote_code):
        from transformers.cli.serve import Serve

        return Serve(checkpoint, host=host, port=port, trust_remote_code=trust_remote_code, **options)


def own_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of transformers' ``Serve`` from a command line: ``--name value``, ``--name=value``, or ``--name`` alone for true.

    Raises:
        ImportError: what the server needs is not installed.
        OptionError: the server has no such option, or ``evomoe serve`` has it.
    """
    if not words:
        return {}
    if not is_serve_available():
        raise ImportError(MISSING)
    from transformers.cli.serve import Serve

    known = [name for name in inspect.signature(Serve).parameters if name not in OURS]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in known:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, nargs="?", const="true", default=argparse.SUPPRESS)
    given, unknown = parser.parse_known_args(list(words))
    if unknown:
        raise OptionError("engine", f"transformers' server has no option '{unknown[0]}'; after `--` it takes {', '.join(known)}.")
    return {name: _plain(value) for name, value in vars(given).items()}


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def check_port(host: str, port: int) -> None:
    """Raises OptionError if nobody can listen there, or somebody does."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:  # as uvicorn tells them apart
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OverflowError as error:
            raise OptionError("port", f"{port} must lie between 0 and 65535.") from error
        except socket.gaierror as error:
            raise OptionError("host", f"there is no '{host}': {error.strerror}.") from error
        except OSError as error:
            raise OptionError("port", f"cannot listen at {host}:{port} ({error.strerror}); choose another port.") from error


def _telling(processor: Any, longest: int | None) -> Any:
    """The processor, whose errors the server answers with their sentence: it asks for what a request holds, a wrong picture for one.

    Args:
        longest: tokens that the model reads at most; a longer request would keep all others waiting.
    """
    from fastapi import HTTPException

    ask = processor.apply_chat_template

    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            inputs = ask(*args, **kwargs)
        except Exception as error:  # of what opens pictures, and of templates; each has its own kinds
            raise HTTPException(400, f"The request cannot be read: {foreign(error)}") from error
        length = len(torch.as_tensor(inputs["input_ids"]).flatten())
        if longest is not None and length >= longest:
            raise HTTPException(400, f"The request has {length:,} tokens, and the model reads {longest:,} at most.")
        return inputs

    processor.apply_chat_template = asked
    return processor


@contextmanager
def _our_models(checkpoint: str, dtype: str, trust_remote_code: bool) -> "Iterator[None]":
    """Within the block, the server loads this model in our way: its own knows neither the type nor the classes of an EvoMoE."""
    from transformers.cli.serving import model_manager

    begin = int(time.time())
    longest = getattr(text_config(load_config(checkpoint, trust_remote_code)), "max_position_embeddings", None)

    class Manager(model_manager.ModelManager):
        def _load_processor(self, *args: Any, **kwargs: Any) -> Any:
            return _telling(load_processor(checkpoint, trust_remote_code), longest)

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            device = best_device()
            prepare(device)
            return moved(load_model(checkpoint, dtype, trust_remote_code), device).eval()

        @staticmethod
        def get_model_modality(model: Any, processor: Any = None) -> Any:
            return model_manager.Modality.VLM if takes_pictures(model.config) else model_manager.Modality.LLM

        @staticmethod
        @lru_cache
        def get_gen_models(cache_dir: str | None = None) -> list[dict[str, Any]]:
            """The one model that is served; transformers lists the hub's cache, which need not be there."""
            return [{"id": checkpoint, "object": "model", "owned_by": "", "created": begin}]

    # The server imports the name when it is made, and keeps what it made.
    with mock.patch.object(model_manager, "ModelManager", Manager):
        yield
