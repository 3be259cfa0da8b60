"""The rules that find layers, FFNs, image tokens and parts in models of many families, and what they refuse."""

from types import SimpleNamespace

import pytest
import torch
from tiny import IMAGE_TOKEN, make_language_model, make_llava
from torch import nn
from transformers import (
    DeepseekV3Config,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GlmConfig,
    Lfm2Config,
    MixtralConfig,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen2VLConfig,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
)

from evomoe import upcycle
from evomoe.model.structure import (
    UnsupportedModelError,
    check_convertible,
    decoder_layers,
    ffn_names,
    find_ffn,
    image_token_ids,
    module_name,
    part_of,
)

LAYERS = {
    "llava": "model.language_model.layers",
    "llava-phi": "model.language_model.layers",
    "paligemma": "model.language_model.layers",
    "idefics3": "model.text_model.layers",
}

EXPERTS = {"num_experts": 2, "num_local_experts": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
SPARSE = {
    "qwen2-moe": lambda: make_language_model(Qwen2MoeConfig, **EXPERTS),
    "mixtral": lambda: make_language_model(MixtralConfig, **EXPERTS),
    "dense-first-deepseek": lambda: make_language_model(
        DeepseekV3Config, first_k_dense_replace=2, n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1,
        kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, num_key_value_heads=4,
    ),
    "evomoe": lambda: upcycle(make_llava(), moe_layers=[3]),
}  # fmt: skip


def test_the_decoder_s_layers_are_found_and_no_other_list_of_that_length(family, dense):
    dense.as_many_as_the_decoder = nn.ModuleList(nn.Identity() for _ in range(4))
    layers = decoder_layers(dense)
    assert layers is dense.get_submodule(LAYERS[family])
    assert module_name(dense, layers) == LAYERS[family]


def test_the_ffn_of_every_layer_is_found(dense):
    assert ffn_names(dense) == ["mlp"] * 4


@pytest.mark.parametrize(
    ("config", "name", "maps"),
    [
        (Phi3Config, "mlp", {"gate_up_proj", "down_proj"}),  # gate and up in one fused map
        (GlmConfig, "mlp", {"gate_up_proj", "down_proj"}),
        (Lfm2Config, "feed_forward", {"w1", "w2", "w3"}),  # and convolutions instead of attention in some layers
    ],
)
def test_other_layouts_of_an_ffn(config, name, maps):
    fields = {"layer_types": ["conv", "full_attention"] * 2} if config is Lfm2Config else {}
    model = make_language_model(config, head_dim=8, **fields)
    assert ffn_names(model) == [name] * 4
    assert {n for n, _ in decoder_layers(model)[0].get_submodule(name).named_children() if "act" not in n} == maps


def layer_with(**modules: nn.Module) -> nn.Module:
    layer = nn.Module()
    for name, module in modules.items():
        layer.add_module(name, module)
    return layer


def maps(*sizes: tuple[int, int]) -> nn.Module:
    return nn.Sequential(*(nn.Linear(*size) for size in sizes))


@pytest.mark.parametrize(
    ("ffn", "found"),
    [
        (maps((8, 16), (16, 8)), True),
        (maps((8, 16), (8, 16), (16, 8)), True),
        (maps((8, 8), (8, 8)), True),  # as wide as the model
        (maps((8, 16)), False),
        (maps((8, 16), (16, 4)), False),
        (maps((8, 16), (16, 8), (16, 8)), False),
        (maps((8, 16), (8, 16), (8, 16), (16, 8)), False),
    ],
)
def test_an_ffn_is_one_or_two_maps_in_and_one_back(ffn, found):
    layer = layer_with(self_attn=maps((8, 16), (16, 8)), input_layernorm=nn.LayerNorm(8), block=ffn)
    if found:
        assert find_ffn(layer, 8) == "block"
    else:
        with pytest.raises(UnsupportedModelError, match="no FFN submodule"):
            find_ffn(layer, 8)


def test_of_nested_candidates_the_shallowest_is_taken():
    assert find_ffn(layer_with(a=layer_with(deep=maps((8, 16), (16, 8))), b=maps((8, 16), (16, 8))), 8) == "b"
    assert find_ffn(layer_with(wrapper=layer_with(deep=maps((8, 16), (16, 8)))), 8) == "wrapper.deep"


def test_of_several_the_widest_is_taken_and_equals_are_refused():
    low_rank, wide = maps((8, 2), (2, 8)), maps((8, 16), (16, 8))
    assert find_ffn(layer_with(laurel=low_rank, mlp=wide), 8) == find_ffn(layer_with(mlp=wide, laurel=low_rank), 8) == "mlp"
    with pytest.raises(UnsupportedModelError, match=r"several FFNs of the same width \(first, second\)"):
        find_ffn(layer_with(first=wide, second=maps((8, 16), (16, 8))), 8)


def test_gemma_3n_s_low_rank_map_is_not_its_ffn():
    config = Gemma3nTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=64, vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0,
        layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    assert ffn_names(Gemma3nForCausalLM(config)) == ["mlp", "mlp"]


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_a_sparse_model_is_refused(make):
    with pytest.raises(UnsupportedModelError, match="sparse already|EvoMoE model already"):
        upcycle(make())
    with pytest.raises(UnsupportedModelError, match=r"sparse already \(it contains '.*(experts|gate|router).*'\)"):
        ffn_names(make())


def test_fc1_and_fc2_directly_in_the_layer_are_refused():
    config = OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
    model = OPTForCausalLM(config)
    with pytest.raises(UnsupportedModelError, match="no FFN submodule.*directly in the layer, such as OPT"):
        upcycle(model)
    assert type(model) is OPTForCausalLM


def test_a_model_without_a_list_of_its_layers_is_refused(llava):
    llava.config.text_config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match="no list of 5 decoder layers"):
        decoder_layers(llava)


def test_image_tokens_come_from_the_configuration(dense):
    assert image_token_ids(dense.config) == (IMAGE_TOKEN,)


def test_video_tokens_count_as_image_tokens_and_a_text_model_has_neither():
    assert image_token_ids(Qwen2VLConfig(image_token_id=7, video_token_id=8)) == (7, 8)
    assert image_token_ids(SimpleNamespace(image_token_id=0, video_token_id=None)) == (0,)
    assert image_token_ids(make_language_model().config) == ()


def test_parts_of_a_sparse_model_and_of_a_text_model():
    assert {part for name, part in part_of(upcycle(make_llava())).items() if "experts" in name or "router" in name} == {"text"}
    assert set(part_of(make_language_model()).values()) == {"text"}


def test_a_projector_s_name_inside_the_language_model_does_not_make_it_one(llava):
    llava.get_decoder().layers[0].mlp.connector = nn.Linear(2, 2)
    assert part_of(llava)["model.language_model.layers.0.mlp.connector.weight"] == "text"


def test_a_model_that_sees_pictures_without_an_image_token_is_refused(llava):
    llava.config.image_token_id = None
    with pytest.raises(UnsupportedModelError, match=r"names no image token \(image_token_id\)"):
        upcycle(llava)


def test_a_model_with_an_encoder_is_refused():
    config = T5Gemma2Config()
    with torch.device("meta"):
        model = T5Gemma2ForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="has an encoder and a decoder"):
        check_convertible(model)
