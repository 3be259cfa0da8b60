"""What vLLM finds by its entry point: plain ``vllm serve FOLDER`` knows an EvoMoE wherever evomoe is installed."""

_MODEL = "evomoe.serving.vllm_model"


def register() -> None:
    """Names the classes that serve EvoMoE models; vLLM calls it in each of its processes, and loads them when it meets one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    from vllm import ModelRegistry
    from vllm.transformers_utils import model_arch_config_convertor as shapes

    import evomoe.auto  # noqa: F401  (makes the folder's model type known to transformers)
    from evomoe.model.configuration import MODEL_TYPE

    # Some families are in both tables: those are served with pictures.
    kinds = {
        "EvoMoEForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "EvoMoEForConditionalGeneration": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    served = {base: kind for kind, bases in kinds.items() for base in bases.values() if isinstance(base, str)}
    for base, kind in served.items():
        ModelRegistry.register_model(f"EvoMoE{base}", f"{_MODEL}:{kind}")

    class Shape(shapes.ModelArchConfigConvertorBase):
        """What vLLM asks of a configuration before it makes the model."""

        def get_num_experts(self) -> int:
            return self.hf_config.moe.num_experts

    shapes.MODEL_ARCH_CONFIG_CONVERTORS[MODEL_TYPE] = Shape
