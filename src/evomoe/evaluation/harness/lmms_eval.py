"""What lmms-eval finds under its entry point ``lmms_eval.models``: ``lmms-eval --model evomoe --model_args pretrained=DIR``."""

from typing import Any

_MODULE = "evomoe.evaluation.harness.lmms_eval_model"


def manifest() -> Any:
    """lmms-eval's ``ModelManifest`` of the model named evomoe; called by lmms-eval, so that it is there to be imported."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyrefly: ignore[missing-import]: it is there when it calls us

    return ModelManifest(model_id="evomoe", simple_class_path=f"{_MODULE}.EvoMoESimple", chat_class_path=f"{_MODULE}.EvoMoEChat")
