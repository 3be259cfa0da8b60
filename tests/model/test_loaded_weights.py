"""A model's weights are those of its folder: whatever is missing, of another shape or not a number stops every verb."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from evomoe import cli, upcycle
from evomoe.model.loading import load_model, load_processor
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.linear import LinearRouter
from evomoe.support.allow_missing import ALLOW_MISSING


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.delenv(ALLOW_MISSING, raising=False)
    yield
    monkeypatch.delenv(ALLOW_MISSING, raising=False)


@pytest.fixture
def sparse(workspace, tmp_path) -> Path:
    upcycle(load_model(workspace / "model")).save_pretrained(tmp_path / "sparse")
    load_processor(workspace / "model").save_pretrained(tmp_path / "sparse")
    return tmp_path / "sparse"


@pytest.fixture
def sparse_of(workspace, tmp_path):
    def made(router: str) -> Path:
        upcycle(load_model(workspace / "model"), router=router).save_pretrained(tmp_path / router)
        return tmp_path / router

    return made


@pytest.fixture
def dense(workspace, tmp_path) -> Path:
    return Path(shutil.copytree(workspace / "model", tmp_path / "dense"))


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def without(part: str):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def with_one(part: str, make):
    def change(weights: dict) -> dict:
        name = next(name for name in weights if part in name)
        return weights | {name: make(weights[name])}

    return change


DENSE = {
    "a tensor missing": (without("model.layers.1.self_attn.q_proj.weight"), "1 tensor of the model is not in it, e.g. .*q_proj.weight"),
    "the tower missing": (without("vision_tower"), "tensors of the model are not in it, e.g. .*vision_tower"),
    "other names": (lambda weights: {f"base_model.model.{n}": t for n, t in weights.items()}, "tensors of the model are not in it"),
    "another shape": (with_one("down_proj", lambda t: t[:, :-1].contiguous()), r"of another shape than its config.json says: .*down_proj"),
    "not a number": (with_one("gate_proj", lambda t: t.fill_(float("nan"))), "gate_proj.weight has values that are not finite"),
    "a layer too many": (lambda w: w | {n.replace(".1.", ".7."): t.clone() for n, t in w.items() if "model.layers.1." in n}, r"config.json does not know, e.g. .*layers\.7"),
    "infinite": (with_one("embed_tokens", lambda t: t.index_fill(0, torch.tensor([3]), float("inf"))), "embed_tokens.* not finite"),
}  # fmt: skip
SPARSE = {
    "no router": (without("router"), "router.* random numbers would stand there"),
    "no second expert": (without("experts.1."), "experts.1.*random numbers would stand there"),
    "a layer's mixture missing": (without("layers.2.mlp"), r"layers\.2\.mlp.*random numbers would stand there"),
    "an expert too many": (
        lambda w: w | {n.replace("experts.1.", "experts.9."): t.clone() for n, t in w.items() if "experts.1." in n},
        r"config.json does not know, e.g. .*experts\.9",
    ),
    "a router that diverged": (with_one("router", lambda t: t.fill_(float("nan"))), "router.* not finite"),
}


@pytest.mark.parametrize("fault", DENSE)
def test_a_dense_folder_with_a_fault_is_refused(fault, dense, tmp_path, capsys):
    change, words = DENSE[fault]
    rewrite(dense, change)
    with pytest.raises(ValueError, match=words):
        load_model(dense)
    assert cli.main(["upcycle", str(dense), str(tmp_path / "out")]) == 1
    assert str(dense) in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", SPARSE)
def test_a_sparse_folder_with_a_fault_is_refused_by_transformers_own_call_too(fault, sparse, capsys):
    change, words = SPARSE[fault]
    rewrite(sparse, change)
    for load in (load_model, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(ValueError, match=words):
            load(sparse)
    assert cli.main(["chat", str(sparse), "--prompt", "what?"]) == 1
    assert str(sparse) in capsys.readouterr().err


def test_a_person_who_knows_better_may_go_on(dense, tmp_path, capsys):
    rewrite(dense, without("vision_tower.encoder.layers.1."))
    assert cli.main(["upcycle", str(dense), str(tmp_path / "out")]) == 1
    assert "--allow-missing-weights" in capsys.readouterr().err
    assert cli.main(["upcycle", str(dense), str(tmp_path / "out"), "--allow-missing-weights"]) == 0
    assert load_model(tmp_path / "out").moe_blocks


def test_tensors_that_belong_to_nothing_are_named(dense, caplog):
    rewrite(dense, lambda weights: weights | {"of.another.model": torch.ones(2)})
    load_model(dense)
    assert "1 tensor that this model has no place for, e.g. of.another.model" in caplog.text


def test_a_whole_model_loads_as_it_did(sparse, dense):
    load_model(dense)
    model, found = AutoModelForImageTextToText.from_pretrained(sparse, output_loading_info=True)
    assert not found["missing_keys"] and model.moe_blocks


def test_an_adapter_beside_a_model_is_not_lost_in_silence(dense, tmp_path, capsys):
    (dense / "adapter_config.json").write_text("{}")
    assert cli.main(["upcycle", str(dense), str(tmp_path / "out")]) == 1
    assert "holds a LoRA adapter" in capsys.readouterr().err


def test_llava_s_own_format_is_named(dense, capsys):
    config = json.loads((dense / "config.json").read_text())
    del config["text_config"], config["vision_config"]
    (dense / "config.json").write_text(json.dumps(config | {"model_type": "llava", "mm_vision_tower": "openai/clip"}))
    with pytest.raises(ValueError, match="is in LLaVA's own format"):
        load_model(dense)


class Harmful:
    """What a pickle would run when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path(os.environ["HARM"]),)


def test_a_pickle_runs_nothing_and_is_refused(workspace, monkeypatch):
    monkeypatch.setenv("HARM", str(workspace / "harm"))
    (workspace / "model" / "model.safetensors").unlink()
    (workspace / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}))
    with pytest.raises(ValueError, match="its weights are a pickle that holds more than tensors, which could run any code"):
        load_model(workspace / "model")
    assert not (workspace / "harm").exists()


def sharded(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    table = change({name: "shard.safetensors" for name in weights})
    (folder / "model.safetensors.index.json").write_text(
        table if isinstance(table, str) else json.dumps({"metadata": {}, "weight_map": table})
    )


def test_shards_are_loaded_by_their_table(dense):
    sharded(dense, lambda table: table)
    assert load_model(dense)


@pytest.mark.parametrize("table", ["pytorch_model.bin", "consolidated.safetensors", "tf_model.h5", "model.safetensors"])
def test_a_table_that_nobody_reads_is_left_alone(dense, table):
    """`hf download --exclude "*.bin"` leaves one of weights that are not there."""
    (dense / f"{table}.index.json").write_text('{"metadata": {}, "weight_map": {"lm_head.weight": "gone.bin"}}')
    assert load_model(dense)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: dict.fromkeys(table, "/dev/zero"),
        lambda table: dict.fromkeys(table, "../other.safetensors"),
        lambda table: dict.fromkeys(table, "gone.safetensors"),
        lambda table: dict.fromkeys(table, ""),
        lambda table: dict.fromkeys(table, 3),
        lambda table: [*table],
        lambda table: "[]",
        lambda table: json.dumps({"weight_map": table}),
        lambda table: '{"metadata": {}}',
        lambda table: '{"weight_map": {',
    ],
    ids=["device", "beside the folder", "gone", "empty", "number", "list", "no table", "no metadata", "nothing", "cut"],
)
def test_a_table_of_shards_names_files_beside_it_or_is_refused(dense, change):
    """What it names is read whole: a device would fill the memory."""
    sharded(dense, change)
    with pytest.raises(ValueError, match="model.safetensors.index.json"):
        load_model(dense)


def test_a_model_that_takes_pictures_has_a_processor_that_does(dense):
    load_processor(dense).tokenizer.save_pretrained(dense)
    (dense / "processor_config.json").unlink()
    file = dense / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": None}))
    with pytest.raises(ValueError, match="(takes no pictures, and its model does|has no processor that transformers can load)"):
        load_processor(dense)


class Another(LinearRouter):
    """It has other tensors than the router whose name it takes, and no more than that one."""

    def __init__(self, *args, **options):
        super().__init__(*args)
        self.temperature = torch.nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("trained, now", [("linear", Another), ("dtr", LinearRouter), ("dtr", Another)])
def test_a_row_that_took_the_place_of_the_router_of_a_folder_is_named(trained, now, sparse_of, monkeypatch):
    folder = sparse_of(trained)
    monkeypatch.setitem(ROUTERS, trained, now)
    with pytest.raises(ValueError, match=rf"the router '{trained}' registered now is another .*: \S+\.router\."):
        load_model(folder)


def test_a_row_of_the_same_name_with_other_shapes_is_named_too(sparse_of, monkeypatch):
    class Wide(LinearRouter):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.gate = torch.nn.Linear(self.hidden_size, 2 * self.num_experts, bias=False)

    folder = sparse_of("linear")
    monkeypatch.setitem(ROUTERS, "linear", Wide)
    with pytest.raises(
        ValueError, match="the router 'linear' registered now is another .*router.gate.weight is of another shape in it"
    ):
        load_model(folder)
