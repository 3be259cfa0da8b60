"""A tiny random dense model of every VLM family, with inputs that its processor could have made."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from tiny.vision_inputs import (
    Inputs,
    patches_of,
    pixels_by_row,
    plain_pixels,
    shaped_patches,
    sized_pixels,
    tiled_pixels,
    tiles_by_row,
    two_frames,
)

IMAGE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = 120, 121, 122, 123
IMAGE_TOKENS = 4  # per picture, in most families
VOCABULARY = 128
LAYERS = 4


def _vision(**fields) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"image_size": 16, "patch_size": 8} | fields


def text_fields(**fields) -> dict:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return sizes | heads | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | fields


@dataclass(frozen=True)
class Family:
    """How to make a family's model and inputs.

    Attributes:
        model: makes the dense model.
        image: token ids of one picture in ``input_ids``.
        pixels: vision tensors for ``images[i]`` pictures in row i.
        types: per-token inputs that the model wants besides the attention mask, from ``input_ids``.
        projector: what the names of the projector's parameters contain, and no others.
        video: token ids of one video; empty for a family without.
        frames: vision tensors for ``videos[i]`` videos in row i.
    """

    model: Callable[[], PreTrainedModel]
    image: tuple[int, ...] = (IMAGE_TOKEN,) * IMAGE_TOKENS
    pixels: Callable[[Sequence[int], torch.Generator], Inputs] = plain_pixels
    types: Callable[[Tensor], Inputs] = field(default=lambda ids_BS: {})
    projector: tuple[str, ...] = ("multi_modal_projector",)
    video: tuple[int, ...] = ()
    frames: Callable[[Sequence[int], torch.Generator], Inputs] | None = None


def make_llava(text_config: PreTrainedConfig | None = None) -> PreTrainedModel:
    return _make(
        "Llava",
        vision_config=CLIPVisionConfig(**_vision()),
        text_config=text_config or LlamaConfig(**text_fields()),
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy="default",
    )


def make_language_model(config_class: type[PreTrainedConfig] = LlamaConfig, **fields) -> PreTrainedModel:
    """A causal language model of any family that shares Llama's names for its sizes."""
    return AutoModelForCausalLM.from_config(config_class(**text_fields(**fields))).eval()


def _make(name: str, **fields) -> PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(**fields)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _llava_of(config_name: str, **fields) -> Family:
    return Family(lambda: make_llava(getattr(transformers, config_name)(**text_fields(**fields))))


# LLaVA-NeXT: the whole picture and two tiles, each 2 x 2 features, the tiles with a line break after each of two rows.
_TILED = (IMAGE_TOKEN,) * (4 + 2 * (4 + 1))


def _llava_next() -> PreTrainedModel:
    return _make(
        "LlavaNext",
        vision_config=CLIPVisionConfig(**_vision()),
        text_config=LlamaConfig(**text_fields()),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )


def _llava_onevision() -> PreTrainedModel:
    return _make(
        "LlavaOnevision",
        vision_config=SiglipVisionConfig(**_vision(vision_use_head=False)),
        text_config=transformers.Qwen2Config(**text_fields()),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )


def _idefics2() -> PreTrainedModel:
    return _make(
        "Idefics2",
        vision_config=_vision(),
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8,
                          "num_key_value_heads": 2, "hidden_size": 32},
        text_config=transformers.MistralConfig(**text_fields()),
        image_token_id=IMAGE_TOKEN,
    )  # fmt: skip


def _idefics3(name: str) -> Callable[[], PreTrainedModel]:
    return lambda: _make(
        name, vision_config=_vision(), text_config=LlamaConfig(**text_fields()), image_token_id=IMAGE_TOKEN, scale_factor=1
    )


def _token_types(ids_BS: Tensor) -> Inputs:
    return {"mm_token_type_ids": (ids_BS == IMAGE_TOKEN).int() + 2 * (ids_BS == VIDEO_TOKEN).int()}


_FRAMED_IMAGE = (START_TOKEN, *(IMAGE_TOKEN,) * 4, END_TOKEN)
_FRAMED_VIDEO = (START_TOKEN, *(VIDEO_TOKEN,) * 4, END_TOKEN)


def _qwen(name: str, vision: dict, text: dict | None = None) -> Family:
    sizes = {"depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return Family(
        lambda: _make(
            name,
            vision_config=sizes | vision,
            text_config=text_fields(rope_parameters=rope, **(text or {})),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_start_token_id=START_TOKEN,
            vision_end_token_id=END_TOKEN,
        ),
        image=_FRAMED_IMAGE,
        pixels=patches_of("image"),
        types=_token_types,
        projector=("visual.merger", "visual.deepstack_merger_list"),
        video=_FRAMED_VIDEO,
        frames=patches_of("video"),
    )


def _glm4v() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    return _make(
        "Glm4v",
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "image_size": 16, "patch_size": 4,
                       "out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2},
        text_config=text_fields(rope_parameters=rope),
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        image_start_token_id=START_TOKEN,
        image_end_token_id=END_TOKEN,
        video_start_token_id=START_TOKEN,
        video_end_token_id=END_TOKEN,
    )  # fmt: skip


def _internvl() -> PreTrainedModel:
    return _make(
        "InternVL",
        vision_config=_vision(image_size=[16, 16], patch_size=[4, 4]),
        text_config=transformers.Qwen2Config(**text_fields()),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
    )


def _paligemma() -> PreTrainedModel:
    text = transformers.Gemma2Config(**text_fields(head_dim=8))
    vision = SiglipVisionConfig(**_vision(vision_use_head=False))
    model = _make("PaliGemma", vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, projection_dim=32)
    model.config.text_config.num_image_tokens = IMAGE_TOKENS
    return model


def _gemma3() -> PreTrainedModel:
    return _make(
        "Gemma3",
        vision_config=_vision(vision_use_head=False),
        text_config=text_fields(head_dim=8, sliding_window=8, query_pre_attn_scalar=8, sliding_window_pattern=2),
        image_token_id=IMAGE_TOKEN,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=START_TOKEN,
        eoi_token_index=END_TOKEN,
    )


def _mistral3() -> PreTrainedModel:
    vision = transformers.PixtralVisionConfig(**_vision(image_size=32, patch_size=4, head_dim=16))
    text = transformers.MistralConfig(**text_fields(head_dim=8))
    return _make("Mistral3", vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, spatial_merge_size=2)


def _cohere(name: str) -> Callable[[], PreTrainedModel]:
    more = {"alignment_intermediate_size": 64} if name == "Cohere2Vision" else {}
    return lambda: _make(
        name,
        vision_config=SiglipVisionConfig(**_vision(patch_size=4, vision_use_head=False)),
        text_config=transformers.Cohere2Config(**text_fields(sliding_window=8)),
        image_token_id=IMAGE_TOKEN,
        **more,
    )


def _ovis2() -> PreTrainedModel:
    return _make(
        "Ovis2",
        vision_config=_vision(patch_size=4, hidden_stride=2, vocab_size=24, num_visual_indicator_tokens=2),
        text_config=transformers.Qwen2Config(**text_fields()),
        image_token_id=IMAGE_TOKEN,
        visual_indicator_token_ids=[START_TOKEN, END_TOKEN],
        vocab_size=VOCABULARY,
        hidden_size=32,
    )


def _mllama() -> PreTrainedModel:
    return _make(
        "Mllama",
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
                       "attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_output_dim": 64, "max_num_tiles": 4,
                       "intermediate_layers_indices": [1]},
        text_config=text_fields(cross_attention_layers=[1, 3]),
        image_token_index=IMAGE_TOKEN,
    )  # fmt: skip


def _lfm2_vl() -> PreTrainedModel:
    vision = transformers.Siglip2VisionConfig(**_vision(num_patches=16, patch_size=4, vision_use_head=False))
    text = transformers.Lfm2Config(**text_fields(layer_types=["conv", "full_attention"] * 2, block_multiple_of=8))
    return _make("Lfm2Vl", vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, projector_hidden_size=32)


FAMILIES: dict[str, Family] = {
    "llava": Family(make_llava),
    "llava-mistral": _llava_of("MistralConfig"),
    "llava-phi": _llava_of("PhiConfig", num_key_value_heads=4),
    "llava-qwen2": _llava_of("Qwen2Config"),
    "llava-stablelm": _llava_of("StableLmConfig"),
    "llava-next": Family(_llava_next, image=_TILED, pixels=tiled_pixels, projector=("multi_modal_projector", "image_newline")),
    "llava-onevision": Family(
        _llava_onevision,
        image=_TILED,
        pixels=tiled_pixels,
        projector=("multi_modal_projector", "image_newline"),
        video=(VIDEO_TOKEN,) * (2 * 1 + 1),
        frames=two_frames,
    ),
    "idefics2": Family(_idefics2, pixels=pixels_by_row, projector=("connector",)),
    "idefics3": Family(_idefics3("Idefics3"), pixels=pixels_by_row, projector=("connector",)),
    "smolvlm": Family(_idefics3("SmolVLM"), pixels=pixels_by_row, projector=("connector",)),
    "qwen2-vl": _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32}),
    "qwen2.5-vl": _qwen("Qwen2_5_VL", {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "window_size": 16,
                                       "fullatt_block_indexes": [1]}),
    "qwen3-vl": _qwen("Qwen3VL", {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32,
                                  "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, {"head_dim": 8}),
    "qwen3.5": _qwen("Qwen3_5", {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32,
                                 "num_position_embeddings": 16},
                     {"head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
                      "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2}),
    "internvl": Family(_internvl),
    "paligemma": Family(_paligemma, types=lambda ids_BS: {"token_type_ids": torch.zeros_like(ids_BS)}),
    "gemma3": Family(_gemma3, image=_FRAMED_IMAGE, types=lambda ids_BS: {"token_type_ids": (ids_BS == IMAGE_TOKEN).long()}),
    "mistral3": Family(_mistral3, pixels=sized_pixels),
    "aya-vision": Family(_cohere("AyaVision")),
    "cohere2-vision": Family(_cohere("Cohere2Vision")),
    "ovis2": Family(_ovis2, image=_FRAMED_IMAGE, projector=("visual_embeddings_table",)),
    "mllama": Family(_mllama, image=(IMAGE_TOKEN,), pixels=tiles_by_row),
    "glm4v": Family(_glm4v, image=_FRAMED_IMAGE, pixels=patches_of("image"), types=_token_types,
                    projector=("visual.merger",)),  # a video's frames are image tokens to it
    "lfm2-vl": Family(_lfm2_vl, pixels=shaped_patches),
}  # fmt: skip


def _sparse(name: str, **fields) -> Family:
    """A language model of experts, scores drawn widely enough to differ from token to token."""
    sizes = {"num_experts_per_tok": 4, "moe_intermediate_size": 16} | fields
    return Family(lambda: AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**text_fields(**sizes))))


_DEEPSEEK = {"n_routed_experts": 16, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": None,
             "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4, "n_group": 4,
             "topk_group": 2, "routed_scaling_factor": 2.5}  # fmt: skip
SPARSE: dict[str, Family] = {
    "qwen2-moe": _sparse("Qwen2Moe", num_experts=16, shared_expert_intermediate_size=32, norm_topk_prob=False),
    "qwen3-moe": _sparse("Qwen3Moe", num_experts=16, head_dim=8, norm_topk_prob=True, mlp_only_layers=[1]),
    "mixtral": _sparse("Mixtral", num_local_experts=8, num_experts_per_tok=2),
    "olmoe": _sparse("Olmoe", num_experts=16),
    "deepseek-v2": _sparse("DeepseekV2", **_DEEPSEEK, topk_method="group_limited_greedy"),
    "deepseek-v2-lite": _sparse("DeepseekV2", **_DEEPSEEK | {"n_group": 1, "topk_group": 1}, topk_method="greedy"),
    "deepseek-v3": _sparse("DeepseekV3", **_DEEPSEEK),
    "qwen3-vl-moe": _qwen("Qwen3VLMoe", {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32,
                                         "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
                          {"head_dim": 8, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16}),
}  # fmt: skip
"""Models that transformers has as mixtures of experts."""
QUICK = ("llava", "llava-phi", "paligemma", "idefics3")


def make(family: str) -> PreTrainedModel:
    """The dense model of a family, always the same, in evaluation mode."""
    torch.manual_seed(0)
    model = (FAMILIES | SPARSE)[family].model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # gates and maps that start at zero would hide what lies behind them
                parameter.normal_(std=0.1)
        if family in SPARSE:  # as drawn, every expert would get about the same score
            for name, weight in [*model.named_parameters(), *model.named_buffers()]:
                if name.endswith(("gate.weight", "e_score_correction_bias")):
                    weight.normal_(std=0.3)
    return model


def inputs_for(
    family: str | PreTrainedModel,
    images: Sequence[int] = (1, 0),
    text: int = 5,
    padding: str = "right",
    videos: Sequence[int] = (),
) -> Inputs:
    """A batch with ``images[i]`` pictures and some words in row i, padded on one side.

    Ids are drawn from a fixed seed, so the same arguments give the same batch. ``family`` may also be a model, dense or sparse.
    """
    if isinstance(family, PreTrainedModel):
        model_type = (getattr(family.config, "evomoe", None) or {}).get("base_model_type", family.config.model_type)
        family = next((name for name in FAMILIES | SPARSE if re.sub("[-.]", "_", name) == model_type), "llava")
    generator = torch.Generator().manual_seed(7)
    made, rows = (FAMILIES | SPARSE)[family], []
    for i, count in enumerate(images):
        words = torch.randint(3, 100, (text + i,), generator=generator)
        seen = made.image * count + made.video * (videos[i] if videos else 0)
        rows.append(torch.cat([torch.tensor([1, *seen]), words]))
    width = max(map(len, rows))
    ids_BS, mask_BS = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if padding == "right" else slice(width - len(row), width)
        ids_BS[i, where], mask_BS[i, where] = row, 1
    batch = {"input_ids": ids_BS, "attention_mask": mask_BS, **made.types(ids_BS)}
    if sum(images):
        batch |= made.pixels(images, generator)
    if sum(videos):
        batch |= made.frames(videos, generator)
    if "aspect_ratio_mask" in batch:  # Mllama: which text may look at which picture
        seen_BSNT = (ids_BS == IMAGE_TOKEN).cumsum(-1).clamp(max=1)[..., None, None]
        batch["cross_attention_mask"] = seen_BSNT * batch["aspect_ratio_mask"][:, None]
    return batch
