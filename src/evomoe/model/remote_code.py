"""The module that imports evomoe for whoever has not, beside a saved model's weights.

A saved EvoMoE model is weights and a configuration, no code: after ``import evomoe``, transformers' auto classes load it, and
a process that did not import it gets transformers' error about the unknown model type ``evomoe``. With ``remote_code`` the
folder also holds a module of one line that imports the installed evomoe, and ``config.json`` points to it. transformers
runs that module only for those who say ``trust_remote_code=True``.
"""

from pathlib import Path

from transformers.configuration_utils import PreTrainedConfig

from evomoe.support.files import write_text

REMOTE_MODULE = "evomoe_auto"
_AUTO_MAP = {"AutoConfig": f"{REMOTE_MODULE}.AnyEvoMoEConfig"}
_REMOTE_CODE = '''"""Lets transformers load this EvoMoE model where evomoe is installed but not imported."""

from evomoe.auto import AnyEvoMoEConfig  # noqa: F401  (importing it registers EvoMoE's model classes)
'''


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
