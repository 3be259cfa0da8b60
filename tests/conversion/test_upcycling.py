"""Conversion of dense models: what becomes of them, what is refused, and that a refusal changes nothing."""

import copy
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file
from tiny import IMAGE_TOKEN, inputs_for, make_language_model, make_llava, make_processor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM, Phi3Config

from evomoe import upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.block import EvoMoEBlock
from evomoe.model.structure import UnsupportedModelError, decoder_layers
from evomoe.recipe.placement import moe_layers, parse_placement


def words(count: int = 6) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(5, 5 + count)[None], "attention_mask": torch.ones(1, count, dtype=torch.long)}


def snapshot(model) -> tuple:
    """All that a refused request must leave alone."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return type(model), type(model.config), model.config.to_dict(), tensors, [type(m) for m in model.modules()]


def assert_unchanged(model, before: tuple) -> None:
    after = snapshot(model)
    assert after[:3] == before[:3] and after[4] == before[4]
    assert after[3].keys() == before[3].keys()
    assert all(torch.equal(after[3][name], tensor) for name, tensor in before[3].items())


def test_the_model_is_converted_in_place_with_its_own_ffn_as_the_first_expert(llava):
    layers = decoder_layers(llava)
    ffns = [layer.mlp for layer in layers]
    sparse = upcycle(llava, moe_layers=[2])
    assert sparse is llava and type(sparse).__name__ == "EvoMoELlavaForConditionalGeneration"
    assert layers[2].mlp.experts[0] is ffns[2] and [layers[i].mlp is ffns[i] for i in (0, 1, 3)] == [True] * 3
    assert sparse.config.model_type == "evomoe" and sparse.config.evomoe["base_model_type"] == "llava"
    assert sparse.generation_config is llava.generation_config


def test_the_dense_configuration_is_left_to_its_other_users(llava):
    config = llava.config
    before = config.to_dict()
    sparse = upcycle(llava)
    assert config.to_dict() == before and type(config).__name__ == "LlavaConfig"
    assert type(sparse.config).__name__ == "EvoMoELlavaConfig" and sparse.model.config is sparse.config


def test_a_text_only_model_becomes_a_mixture_whose_tokens_are_all_text(tmp_path):
    torch.manual_seed(0)
    dense, inputs = make_language_model(), words()
    before = dense(**inputs).logits
    sparse = upcycle(dense)
    out = sparse(**inputs, output_router_logits=True)
    torch.testing.assert_close(out.logits, before, atol=1e-5, rtol=0)
    assert not any(record.modality.is_image_T.any() for record in out["records"].values()) and len(out["records"]) == 2
    sparse.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded).__name__ == "EvoMoELlamaForCausalLM" and loaded.config.moe == sparse.config.moe
    assert torch.equal(loaded.eval()(**inputs).logits, out.logits)


def test_an_image_token_s_id_is_an_ordinary_word_to_a_text_only_model():
    sparse = upcycle(make_language_model())
    inputs = words() | {"input_ids": torch.full((1, 6), IMAGE_TOKEN)}
    record = sparse(**inputs, output_router_logits=True)["records"][0]
    assert not record.modality.is_image_T.any()


def test_a_fused_ffn_becomes_experts():
    torch.manual_seed(0)
    dense, inputs = make_language_model(Phi3Config), words()
    before = dense(**inputs).logits
    sparse = upcycle(dense, num_experts=3)
    assert [type(expert).__name__ for expert in sparse.moe_blocks[0].experts] == ["Phi3MLP"] * 3
    torch.testing.assert_close(sparse(**inputs).logits, before, atol=1e-5, rtol=0)


WRONG = {
    "one expert": ({"num_experts": 1}, "^num_experts: 1 is too few; a mixture needs at least 2"),
    "top-k above E": ({"num_experts_per_tok": 5}, r"^num_experts_per_tok: 5 \(top-k\) must lie between 1 and `num_experts`, which is 4"),
    "top-k zero": ({"num_experts_per_tok": 0}, r"^num_experts_per_tok: 0 \(top-k\)"),
    "expert dropout": ({"expert_dropout": 1.0}, "^expert_dropout: 1.0 must"),
    "router": ({"router": "dtrr"}, "router: there is no 'dtrr'; did you mean 'dtr'. Choose from linear, modality"),
    "router option": ({"router_options": {"rnk": 3}}, "router_options: router .dtr. takes no .rnk."),
    "inner router option": ({"router": "dtr+shared", "router_options": {"rnk": 3}}, r"router_options: router .dtr\+shared. takes no"),
    "router size": ({"router_options": {"rank": 0}}, "rank"),
    "gate": ({"gate": "softmax"}, "gate: there is no 'softmax'; choose from probability"),
    "loss": ({"aux_losses": {"balanced": 1.0}}, "aux_losses: there is no 'balanced'; did you mean 'balance'. Choose from balance"),
    "reduction": ({"aux_reduction": "max"}, "aux_reduction: there is no 'max'; choose from mean, sum"),
    "initialiser": ({"expert_init": "copy"}, "expert_init: there is no 'copy'; choose from replicate"),
    "initialiser option": ({"expert_init": "noise", "init_options": {"sdt": 1}}, "init_options: init .noise. takes no .sdt."),
    "initialiser value": ({"expert_init": "drop_upcycling", "init_options": {"ratio": 2}}, "ratio: 2 must lie in"),
    "no evolved experts": ({"expert_init": "evolved"}, "experts: name the file that Stage II wrote"),
    "placement": ({"moe_layers": "every"}, "moe_layers: there is no 'every'; choose from alternating"),
    "layer too high": ({"moe_layers": [0, 4]}, r"moe_layers: \[0, 4\] must be distinct indices from 0 to 3"),
    "negative layer": ({"moe_layers": [-1]}, "distinct indices from 0 to 3"),
    "layer twice": ({"moe_layers": [1, 1]}, "distinct indices from 0 to 3"),
    "a number of layers": ({"moe_layers": 3}, "moe_layers: 3 must be a name or a list of layer indices"),
    "layers by name": ({"moe_layers": ["0"]}, r"moe_layers: \['0'\] must be a name or a list of layer indices"),
    "seed": ({"seed": "x"}, "seed: x must be a whole number from 0"),
    "negative seed": ({"seed": -1}, "seed: -1 must be a whole number from 0"),
    "no layer": ({"moe_layers": []}, "moe_layers: there is none; choose"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_named_and_leaves_the_model_as_it_was(llava, options, message):
    before = snapshot(llava)
    with pytest.raises(ValueError, match=message):
        upcycle(llava, **options)
    assert_unchanged(llava, before)


def test_evolved_experts_that_fit_only_some_layers_leave_the_model_as_it_was(llava):
    ffn = decoder_layers(llava)[0].mlp
    only_layer_0 = {f"layers.0.experts.{n}.{name}": t.detach() for n in (1, 2, 3) for name, t in ffn.named_parameters()}
    before = snapshot(llava)
    with pytest.raises(ValueError, match="no tensor 'layers.2.experts.1"):
        upcycle(llava, expert_init="evolved", init_options={"experts": only_layer_0})
    assert_unchanged(llava, before)


def test_a_class_that_transformers_would_not_load_again_is_refused(llava):
    inner = llava.model
    before = snapshot(inner)
    with pytest.raises(UnsupportedModelError, match="LlavaModel is not the class"):
        upcycle(inner)
    assert_unchanged(inner, before)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("alternating", [0, 2]), ("all", [0, 1, 2, 3]), ("without_first", [2]), ([3, 1], [1, 3]), ((2,), [2]),
    ],
)  # fmt: skip
def test_placements(llava, placement, expected):
    sparse = upcycle(llava, moe_layers=placement)
    assert list(sparse.moe_blocks) == sparse.config.moe.moe_layers == expected


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("0,2,5", [0, 2, 5]), ("1 3", [1, 3]), ("4", [4]), ("all", "all"), ("0,x", "0,x"), ("-1", "-1"), ("", "")],
)
def test_placements_as_text(text, parsed):
    assert parse_placement(text) == parsed


def test_alternating_starts_with_the_first_layer_whatever_their_number():
    assert moe_layers("alternating", 5) == [0, 2, 4] and moe_layers("without_first", 5) == [2, 4]


def test_the_seed_decides_the_router_and_the_noise_and_nothing_else_does(llava):
    options = {"expert_init": "noise", "init_options": {"std": 0.1}}
    states = []
    for seed, outer in ((3, 0), (3, 1), (4, 0)):
        model = copy.deepcopy(llava)
        torch.manual_seed(outer)
        expected_next = torch.rand(1, generator=torch.Generator().manual_seed(outer))
        states.append(upcycle(model, seed=seed, **options).state_dict())
        assert torch.equal(torch.rand(1), expected_next)  # the caller's random numbers go on as before
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = {name for name in first if ("router" in name and "bias" not in name) or ".experts.1." in name}
    assert drawn and all(not torch.equal(first[name], other[name]) for name in drawn)
    assert all(torch.equal(first[name], other[name]) for name in first if "mlp" not in name or ".experts.0." in name)


def test_bfloat16_is_kept_and_works(llava):
    inputs = inputs_for(llava)
    dense = copy.deepcopy(llava).to(torch.bfloat16)
    sparse = upcycle(copy.deepcopy(dense), shared_expert=True)
    assert {p.dtype for p in sparse.parameters()} == {torch.bfloat16}
    out = sparse(**inputs, labels=inputs["input_ids"], output_router_logits=True)
    assert out.logits.dtype == torch.bfloat16 and out.router_logits[0].dtype == torch.float32
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], dense(**inputs).logits[real], atol=2e-2, rtol=0)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in sparse.moe_blocks[0].router.parameters())


def test_training_mode_is_kept():
    assert upcycle(make_llava().train()).moe_blocks[0].training and not upcycle(make_llava().eval()).moe_blocks[0].training


@pytest.fixture
def dense_folder(tmp_path, llava):
    llava.save_pretrained(tmp_path / "dense")
    make_processor().save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_a_folder_is_converted_with_its_processor(dense_folder, llava, tmp_path):
    summary = upcycle_folder(str(dense_folder), tmp_path / "new" / "sparse", num_experts=3, moe_layers="1,3", seed=5)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "new" / "sparse")
    expected = upcycle(llava, num_experts=3, moe_layers=[1, 3], seed=5).state_dict()
    assert loaded.config.moe.moe_layers == [1, 3]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert type(AutoProcessor.from_pretrained(tmp_path / "new" / "sparse")).__name__ == "LlavaProcessor"
    assert "3 experts in layers 1, 3, router dtr" in summary and "\n" not in summary


def test_the_precision_of_the_written_weights_can_be_chosen(dense_folder, tmp_path):
    upcycle_folder(str(dense_folder), tmp_path / "sparse", dtype="bfloat16")
    assert json.loads((tmp_path / "sparse" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_existing_folder_is_refused_and_kept(dense_folder, tmp_path):
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="sparse exists already; name another folder"):
        upcycle_folder(str(dense_folder), tmp_path / "sparse")
    assert (tmp_path / "sparse" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("reason", ["option", "processor", "sparse"])
def test_a_failed_conversion_leaves_nothing_behind(dense_folder, tmp_path, reason):
    options = {}
    if reason == "option":
        options, message = {"router": "dtrr"}, "there is no 'dtrr'"
    elif reason == "processor":  # found out after the model is written
        for file in dense_folder.glob("*token*"):
            file.unlink()
        (dense_folder / "processor_config.json").unlink()
        message = "has no processor that transformers can load"
    else:
        upcycle_folder(str(dense_folder), tmp_path / "first")
        dense_folder, message = tmp_path / "first", "EvoMoE model already"
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        upcycle_folder(str(dense_folder), tmp_path / "sparse", **options)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_text_only_folder_is_converted_with_its_tokenizer(tmp_path):
    make_language_model().save_pretrained(tmp_path / "dense")
    make_processor().tokenizer.save_pretrained(tmp_path / "dense")
    assert "all tokens are text to the router" in upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse")
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "sparse"), LlamaForCausalLM)
    assert AutoProcessor.from_pretrained(tmp_path / "sparse").convert_tokens_to_ids("<image>") == IMAGE_TOKEN


@pytest.mark.parametrize("options", [{"moe_layers": "all", "shared_expert": True}, {"expert_init": "noise", "seed": 3}])
def test_a_folder_converted_layer_by_layer_equals_one_converted_in_memory(family, dense, tmp_path, monkeypatch, options):
    monkeypatch.setattr("evomoe.model.loading.check_picture_tokens", lambda *_: None)  # the processor is LLaVA's for each family
    dense.save_pretrained(tmp_path / "dense")
    make_processor().save_pretrained(tmp_path / "dense")
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "streamed", **options)
    upcycle(AutoModelForImageTextToText.from_pretrained(tmp_path / "dense"), **options).save_pretrained(tmp_path / "whole")
    streamed, whole = (
        {name: t for file in (tmp_path / folder).glob("*.safetensors") for name, t in load_file(file).items()}
        for folder in ("streamed", "whole")
    )
    assert streamed.keys() == whole.keys() and all(torch.equal(streamed[name], whole[name]) for name in whole)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "streamed" / file).read_text()) == json.loads((tmp_path / "whole" / file).read_text())
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "streamed", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_conversion_of_a_folder_holds_one_layer_s_experts_at_a_time(tmp_path, monkeypatch):
    make_llava().save_pretrained(tmp_path / "dense")
    make_processor().save_pretrained(tmp_path / "dense")
    alive, most = weakref.WeakSet(), []
    made = EvoMoEBlock.__init__

    def make(block, *args) -> None:
        made(block, *args)
        alive.add(block)
        most.append(len(alive))

    monkeypatch.setattr(EvoMoEBlock, "__init__", make)
    monkeypatch.setattr("evomoe.conversion.upcycled_folder.SMALL", 1)
    monkeypatch.setattr(
        "evomoe.conversion.upcycled_folder.empty_model", lambda config: make_llava()
    )  # the report's own, without weights
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse", moe_layers="all")
    assert most == [1, 1, 1, 1]
    index = json.loads((tmp_path / "sparse" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-{n:05d}-of-00005.safetensors" for n in range(1, 6)}
