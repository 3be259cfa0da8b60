"""Every private name of transformers that this library relies on, in one place, each with the version it was last seen in.

A new version of transformers may rename any of them; ``tests/support/test_hf.py`` looks for each.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer
    from transformers.modeling_utils import PreTrainedModel

SEEN_IN = {
    "transformers.models.auto.auto_factory._BaseAutoModelClass._model_mapping": "5.23.0",
    "transformers.modeling_utils.PreTrainedModel._keep_in_fp32_modules_strict": "5.23.0",
    "transformers.modeling_utils.PreTrainedModel._keys_to_ignore_on_save": "5.23.0",
    "transformers.modeling_utils.PreTrainedModel._no_split_modules": "5.23.0",
    "transformers.modeling_utils.PreTrainedModel._init_weights": "5.23.0",
    "transformers.modeling_utils.PreTrainedModel._set_gradient_checkpointing": "5.23.0",
    "transformers.trainer.Trainer._get_train_sampler": "5.23.0",
    "transformers.trainer.Trainer._get_output_dir": "5.23.0",
    "transformers.trainer.Trainer._issue_warnings_after_load": "5.23.0",
    "transformers.trainer.Trainer._save_checkpoint": "5.23.0",
    "transformers.models.llava.processing_llava.LlavaProcessor._get_num_multimodal_tokens": "5.23.0",
}
"""Where a private attribute or method lives. Methods that this library overrides keep their names in its own classes.

Two marks that transformers leaves have no place to be looked up: ``_is_hf_initialized`` on modules whose weights are drawn, and the
hooks named ``output_capturing_hook`` with the mark ``_output_capturing_hooks_installed`` (both seen in 5.23.0).
``Trainer.save_model`` takes a private argument, ``_internal_call`` (5.23.0).
"""

KEEP_IN_FLOAT32 = "_keep_in_fp32_modules_strict"
"""Class attribute of a model: names of the weights that stay in float32 whatever the model's precision."""

NEEDS_TORCHVISION = "Torchvision"
"""What AutoProcessor's error names when an image or video processor needs that package (5.23.0)."""

UNKNOWN_FAMILY = "does not recognize this architecture"
"""What AutoConfig's error says of a model type that this version does not know (5.23.0)."""


def model_classes(auto: type) -> Any:
    """The model class of each configuration class that an auto class knows."""
    return getattr(auto, "_model_mapping")  # noqa: B009


def mark_initialized(module: "nn.Module") -> None:
    """Tells transformers that a module's weights are drawn, so that it does not draw them again."""
    vars(module)["_is_hf_initialized"] = True


def initialize(model: "PreTrainedModel", module: "nn.Module") -> None:
    """Draws a module's weights as its model's family does."""
    getattr(model, "_init_weights")(module)  # noqa: B009


def names_not_saved(model: "PreTrainedModel") -> set[str]:
    """The tensors that a saved model does not hold, for they are tied to others or made anew."""
    return set(model.all_tied_weights_keys or ()) | set(getattr(model, "_keys_to_ignore_on_save", None) or ())


def name_units(model: "nn.Module") -> None:
    """Of the classes whose modules FSDP shares out as units, leaves those that the model has: accelerate refuses names of others."""
    own = {type(module).__name__ for module in model.modules()}
    vars(model)["_no_split_modules"] = sorted(own & set(getattr(model, "_no_split_modules", None) or ()))


def drop_output_capturing(model: "nn.Module") -> None:
    """Removes the hooks by which transformers captures outputs, which do not pickle; it sets them anew."""
    for module in model.modules():
        vars(module).pop("_output_capturing_hooks_installed", None)
        hooks = vars(module)["_forward_hooks"]
        for key, hook in [*hooks.items()]:
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                del hooks[key]


def save_checkpoint(trainer: "Trainer") -> None:
    """Writes a checkpoint of the last step."""
    getattr(trainer, "_save_checkpoint")(trainer.model, trial=None)  # noqa: B009


def image_token_counts(processor: object, sizes: list[list[int]]) -> Any:
    """How many image tokens a processor makes of pictures of these sizes, (height, width) each."""
    return getattr(processor, "_get_num_multimodal_tokens")(image_sizes=sizes)  # noqa: B009
