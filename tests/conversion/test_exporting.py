"""Models that leave: equal scores, without evomoe; what cannot be said is refused with the reason."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import inputs_for, make, make_language_model, make_llava, make_processor
from tiny.families import text_fields
from transformers import AutoModelForImageTextToText, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from evomoe import upcycle
from evomoe.analysis.interventions import only_expert
from evomoe.conversion.exporting import export_folder, native, one_expert
from evomoe.model.loading import load_model
from evomoe.support.errors import OptionError

NOISE = {"expert_init": "noise", "init_options": {"std": 0.3}}


def sparse_of(model, **options):
    """Its routers choose widely, so that every expert is asked."""
    torch.manual_seed(1)
    sparse = upcycle(model, **NOISE | {"router": "linear"} | options).eval()
    for block in sparse.moe_blocks.values():
        for parameter in block.router.parameters():
            torch.nn.init.normal_(parameter)
    return sparse


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", ["llava", "llava-phi", "qwen2.5-vl"])
@pytest.mark.parametrize("expert", ["1", "3"])
def test_a_dense_export_is_the_expert_alone(family, expert, tmp_path):
    sparse, inputs = (
        sparse_of(make(family), router="dtr", router_options={"hypernet_width": 4, "rank": 2}),
        inputs_for(family, (1, 2)),
    )
    with only_expert(sparse, int(expert) - 1):
        expected = logits(sparse, inputs)
    own, real = logits(sparse, inputs), inputs["attention_mask"].bool()
    dense = one_expert(sparse, expert)
    assert type(dense) is type(make(family)) and "evomoe" not in dense.config.to_dict()
    torch.testing.assert_close(logits(dense, inputs)[real], expected[real], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(expected, own, atol=1e-3)
    dense.save_pretrained(tmp_path / "dense")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "dense").eval()
    assert torch.equal(logits(again, inputs), logits(dense, inputs))


def test_the_mean_of_the_experts():
    sparse = sparse_of(make_llava())
    weights = [expert.up_proj.weight.clone() for expert in sparse.moe_blocks[2].experts]
    dense = one_expert(sparse, "mean")
    torch.testing.assert_close(dense.model.language_model.layers[2].mlp.up_proj.weight, sum(weights) / 4)


TEXTS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
GATES = {"top-1": {}, "top-2": {"num_experts_per_tok": 2, "gate": "normalised"}}


@pytest.mark.parametrize("options", GATES.values(), ids=GATES)
@pytest.mark.parametrize("family", [*TEXTS, "llava of qwen2", "llava of llama", "qwen3-vl"])
def test_a_native_export_scores_alike(family, options, tmp_path):
    name = family.removeprefix("llava of ")
    layers = "all" if name in ("llama", "mistral") else "alternating"
    if family in TEXTS:
        dense = make_language_model(TEXTS[family])
        inputs = {"input_ids": torch.randint(3, 90, (2, 11)), "attention_mask": torch.ones(2, 11, dtype=torch.long)}
    elif family == "qwen3-vl":
        dense, inputs = make("qwen3-vl"), inputs_for("qwen3-vl", (1, 2))
    else:
        dense, inputs = make_llava(TEXTS[name](**text_fields())), inputs_for("llava", (1, 2))
    sparse = sparse_of(dense.eval(), moe_layers=layers, **options)
    expected, real = logits(sparse, inputs), inputs["attention_mask"].bool()
    exported = native(sparse)
    assert "EvoMoE" not in type(exported).__name__ and "evomoe" not in json.dumps(exported.config.to_dict())
    torch.testing.assert_close(logits(exported, inputs)[real], expected[real], atol=2e-5, rtol=1e-4)
    exported.save_pretrained(tmp_path / "native")
    again = load_model(tmp_path / "native").eval()
    torch.testing.assert_close(logits(again, inputs)[real], expected[real], atol=2e-5, rtol=1e-4)


def test_probabilities_as_weights_where_the_family_can():
    ids = {"input_ids": torch.randint(3, 90, (2, 11))}
    for config in (Qwen2Config, Qwen3Config):
        sparse = sparse_of(make_language_model(config).eval(), gate="probability")
        expected = logits(sparse, ids)
        torch.testing.assert_close(logits(native(sparse), ids), expected, atol=2e-5, rtol=1e-4)


REFUSED = {
    "router": ("qwen3", {"router": "dtr", "router_options": {"hypernet_width": 4, "rank": 2}}, "router 'dtr'"),
    "gate": ("qwen3", {"num_experts_per_tok": 2, "gate": "straight_through"}, "gate 'straight_through' with 2 experts"),
    "probability": ("llama", {"gate": "probability", "moe_layers": "all"}, "gate 'probability'"),
    "shared": ("qwen3", {"shared_expert": True}, "a shared expert"),
    "dense layers": ("llama", {}, "dense layers among sparse ones"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_no_family_says_is_refused_with_the_property(family, options, words):
    with pytest.raises(OptionError, match=words):
        native(sparse_of(make_language_model(TEXTS[family]).eval(), **options))


def test_a_family_without_a_counterpart_and_what_is_no_ffn_are_refused():
    with pytest.raises(OptionError, match="transformers has no sparse family for 'phi', only for llama"):
        native(sparse_of(make("llava-phi")))
    for options, words in (
        ({"shared_expert": True}, "mixed in by a gate"),
        ({"expert_init": "partition", "init_options": {}}, "slices"),
    ):
        with pytest.raises(OptionError, match=words):
            one_expert(sparse_of(make_llava(), **options), "1")
    for expert in ("0", "5", "first", "-1", "²"):
        with pytest.raises(OptionError, match="^expert: there is no .*choose from 1 to 4, or mean"):
            one_expert(sparse_of(make_llava()), expert)


def test_the_folder_loads_without_evomoe(tmp_path):
    sparse_of(make_llava(Qwen2Config(**text_fields()))).save_pretrained(tmp_path / "sparse")
    make_processor().save_pretrained(tmp_path / "sparse")
    for to in ("dense", "native"):
        said = export_folder(str(tmp_path / "sparse"), tmp_path / to, to)
        assert "LlavaForConditionalGeneration" in said
        code = f"""
import sys
sys.modules["evomoe"] = None
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / to)!r})
AutoProcessor.from_pretrained({str(tmp_path / to)!r})
print(type(model).__name__, model.config.text_config.model_type)
"""
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.split() == ["LlavaForConditionalGeneration", {"dense": "qwen2", "native": "qwen2_moe"}[to]]


def test_an_export_has_a_card_with_the_licence_of_the_model_it_was_made_from(tmp_path):
    sparse_of(make_llava()).save_pretrained(tmp_path / "sparse")
    make_processor().save_pretrained(tmp_path / "sparse")
    (tmp_path / "sparse" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for expert, what in (("2", "Expert 2"), ("mean", "The mean of the experts")):
        export_folder(str(tmp_path / "sparse"), tmp_path / expert, "dense", expert)
        card = ModelCard.load(tmp_path / expert / "README.md")
        assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-text-to-text"
        assert f"# {what} of sparse\n\nA LlavaForConditionalGeneration of transformers" in card.text


def test_a_model_that_scores_otherwise_is_not_kept(tmp_path, monkeypatch):
    sparse_of(make_llava()).save_pretrained(tmp_path / "sparse")
    make_processor().save_pretrained(tmp_path / "sparse")
    real = load_model

    def damaged(source, *args):
        model = real(source, *args)
        if "sparse" not in str(source):
            torch.nn.init.normal_(model.get_output_embeddings().weight)
        return model

    monkeypatch.setattr("evomoe.conversion.exporting.load_model", damaged)
    with pytest.raises(ValueError, match="scores random words otherwise"):
        export_folder(str(tmp_path / "sparse"), tmp_path / "out", "dense")
    assert not (tmp_path / "out").exists()


def test_a_dense_model_has_nothing_to_export(workspace, tmp_path):
    with pytest.raises(ValueError, match="is not an EvoMoE model; there is nothing to export"):
        export_folder(str(workspace / "model"), tmp_path / "out", "dense")


@pytest.mark.parametrize("to", ["native", "dense", "mean"])
@pytest.mark.parametrize("layers", ["all", "alternating"])
def test_half_precision_is_compared_without_its_rounding(to, layers, tmp_path):
    """In bfloat16 itself the alternating one scores by several standard deviations otherwise: experts nearly alike change places."""
    sparse_of(make_llava(Qwen2Config(**text_fields())), moe_layers=layers).save_pretrained(tmp_path / "sparse")
    make_processor().save_pretrained(tmp_path / "sparse")
    kind, expert = {"native": ("native", None), "dense": ("dense", "2"), "mean": ("dense", "mean")}[to]
    export_folder(str(tmp_path / "sparse"), tmp_path / "out", kind, expert, dtype="bfloat16")
    assert load_model(tmp_path / "out").dtype == torch.bfloat16
