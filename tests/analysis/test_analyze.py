"""``evomoe analyze``, from records to files, and what it refuses."""

import json
import math
import shutil

import pytest
import torch
from tiny import make_language_model, make_llava, make_records, make_tokenizer

from evomoe import upcycle
from evomoe.analysis.analyze import analyze
from evomoe.analysis.meanings import MEANINGS
from evomoe.analysis.probe import Probe
from evomoe.analysis.probe_options import ProbeOptions
from evomoe.cli import main
from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import load_records
from evomoe.model.loading import load_processor
from evomoe.recipe.recipe import Recipe

TINY = {"router_options": {"hypernet_width": 4, "rank": 2}}


@pytest.fixture
def sparse(workspace):
    """The workspace with a sparse model beside its dense one."""
    torch.manual_seed(0)
    model = upcycle(make_llava(), expert_init="noise", init_options={"std": 0.1}, **TINY)
    model.save_pretrained(workspace / "sparse")
    load_processor(workspace / "model").save_pretrained(workspace / "sparse")
    return workspace


def arguments(workspace, *more: str, model: str = "sparse") -> list[str]:
    data = ["--data", str(workspace / "data.json"), "--image-root", str(workspace / "images")]
    return ["analyze", str(workspace / model), *data, "--output", str(workspace / "out"), *more]


def test_numbers_report_and_pictures_are_written(sparse, capsys):
    pytest.importorskip("matplotlib")
    assert main(arguments(sparse, "--records", "12", "--batch-size", "5", "--stage1", str(sparse / "model"))) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((sparse / "out" / "numbers.json").read_text())
    report = (sparse / "out" / "report.md").read_text()
    probe = f"12 of the 24 records of {sparse / 'data.json'}, evenly spaced"
    assert numbers["probe"] == probe and f"Measured on {probe}." in report
    assert set(numbers["mean"]) == set(numbers["meanings"]) == set(MEANINGS)
    for layer in ("0", "2"):
        of_layer = numbers["layers"][layer]
        assert all(isinstance(of_layer[name], float | int) for name in MEANINGS), of_layer
        for modality in ("text", "image"):
            assert sum(of_layer["load"][modality]) == pytest.approx(1)
        assert of_layer["slots"]["image"] == 4 * 6  # of the records 0, 2, 4 ..., each other one has a picture
    means = [numbers["layers"][layer]["nmi"] for layer in ("0", "2")]
    assert numbers["mean"]["nmi"] == pytest.approx(sum(means) / 2)
    losses = numbers["language_loss"]
    assert len(losses["shuffled"]) == 8 and len(losses["alone"]) == 4 and losses["own"] > 0
    for heading in (*(meaning.heading for meaning in MEANINGS.values()), "8 shuffles, mean", "expert 4 alone", "layer 2"):
        assert heading in report, heading
    assert "cosine of task vectors" in printed and f"Report: {sparse / 'out' / 'report.md'}" in printed
    assert {path.name for path in (sparse / "out").iterdir()} == {
        "numbers.json", "report.md", "expert_load.png", "router_logits.png",
    }  # fmt: skip


def test_a_model_in_a_run_s_folder_brings_its_stage_1_model(workspace):
    stages = [
        f"--stage{n}.{name}={value}" for n in (2, 3) for name, value in (("steps", 1), ("batch-size", 4), ("accumulation", 1))
    ]
    source = [
        "--model",
        str(workspace / "model"),
        "--data",
        str(workspace / "data.json"),
        "--image-root",
        str(workspace / "images"),
    ]
    run = ["train", *source, "--output", str(workspace / "run"), "--stages", "2", "3", *stages, "--trainer", "use_cpu=true"]
    assert (
        main([*run, "--router-options.hypernet-width", "4", "--router-options.rank", "2", "--stage2.learning-rate", "0.01"]) == 0
    )
    assert main(arguments(workspace, model="run/stage3_routing/model")) == 0
    numbers = json.loads((workspace / "out" / "numbers.json").read_text())
    assert numbers["stage1"] == str(workspace / "model") and numbers["probe"].startswith("all 24 records of ")
    # Experts 2 to 4 of scaled_update lie on the line from Stage I to expert 1.
    assert numbers["mean"]["task_vector_cosine"] == pytest.approx(1, abs=0.02)


def test_without_a_stage_1_model_there_are_no_task_vectors(sparse):
    analyze(str(sparse / "sparse"), ProbeOptions(str(sparse / "data.json"), str(sparse / "images")), str(sparse / "out"))
    numbers = json.loads((sparse / "out" / "numbers.json").read_text())
    assert numbers["stage1"] is None and set(MEANINGS) - set(numbers["mean"]) == {"task_vector_cosine"}


def test_what_cannot_be_analyzed_is_refused_in_one_sentence(sparse, capsys):
    (sparse / "text.json").write_text(json.dumps([record for record in make_records() if "image" not in record]))
    shutil.copytree(sparse / "sparse", sparse / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))
    no_pictures = [*arguments(sparse)[:2], "--data", str(sparse / "text.json"), "--output", str(sparse / "out")]
    for command, message in (
        (arguments(sparse, model="model"), "model is a dense model and has no routers: name a sparse one"),
        (arguments(sparse, "--stage1", str(sparse / "sparse")), "--stage1: "),
        ([*arguments(sparse), "--output", str(sparse / "data.json")], "data.json is a file; name a folder."),
        (arguments(sparse, model="hollow"), "hollow: its weights cannot be loaded: "),
        (no_pictures, "--data: there is no picture in all 6 records of"),
        (arguments(sparse, "--records", "1"), "--data: there is no picture in 1 of the 24 records of"),
        (arguments(sparse, "--records", "0"), "--records: 0 must be at least 1."),
        (arguments(sparse, "--stage1", "./nothing"), "./nothing: there is no such folder."),
        (["analyze", "m", "--data", "no.json"], "no.json: there is no such file."),
        (["analyze", "./nothing", "--data", "d"], "./nothing: there is no such folder."),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (sparse / "out").exists()


def test_a_text_only_model_is_analyzed_without_pictures(sparse):
    model = make_language_model()
    model.resize_token_embeddings(max(make_tokenizer().get_vocab().values()) + 1)
    upcycle(model, expert_init="noise", init_options={"std": 0.1}, **TINY).save_pretrained(sparse / "words")
    make_tokenizer().save_pretrained(sparse / "words")
    records = [record for record in make_records() if "image" not in record]
    (sparse / "text.json").write_text(json.dumps(records))
    analyze(str(sparse / "words"), ProbeOptions(str(sparse / "text.json")), str(sparse / "out"))
    numbers = json.loads((sparse / "out" / "numbers.json").read_text())
    assert numbers["mean"]["cka"] < 0.999 and numbers["mean"]["effective_experts"] > 1
    assert numbers["mean"]["nmi"] is None and len(numbers["language_loss"]["shuffled"]) == 8
    assert "changed_text" not in numbers["mean"] and "n/a" in (sparse / "out" / "report.md").read_text()
    assert all(sum(layer["load"]["image"]) == 0 for layer in numbers["layers"].values())


def test_a_probe_is_spread_over_the_data_and_fits_the_model_s_precision(sparse):
    dataset = ConversationDataset(load_records(sparse / "data.json", sparse / "images"), load_processor(sparse / "sparse"))
    probe = Probe(dataset, "mine", [120], records=5, batch_size=2)
    assert [len(batch["input_ids"]) for batch in probe.batches(make_llava())] == [2, 2, 1]
    for item, i in zip(probe.items, (0, 4, 9, 14, 19), strict=True):
        assert torch.equal(item["input_ids"], dataset[i]["input_ids"])
    (first, *_) = probe.unlabelled(make_llava().bfloat16())
    assert "labels" not in first and first["input_ids"].dtype == torch.int64
    own, other = next(Probe(dataset, "mine", [120], records=24).swapped(make_llava().bfloat16()))
    assert own["pixel_values"].dtype == torch.bfloat16 and own["pixel_values"].shape == other["pixel_values"].shape
    assert torch.equal(own["input_ids"], other["input_ids"]) and not torch.equal(own["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("router", ["anyexperts", "zero_computation"])
def test_a_model_with_virtual_experts(sparse, router):
    """Also one that was cut, in a run's folder, whose dense model has FFNs of another shape."""
    options = {"num_experts": 16, "num_experts_per_tok": 8, "expert_init": "partition", "router": router}
    run = sparse / "run"
    upcycle(make_llava(), **options).save_pretrained(run / "stage3_routing" / "model")
    load_processor(sparse / "sparse").save_pretrained(run / "stage3_routing" / "model")
    Recipe(str(sparse / "dense"), "d", "o", stages=(3,), expert_init="partition").save(run / "recipe.json")
    make_llava().save_pretrained(sparse / "dense")
    probe = ProbeOptions(str(sparse / "data.json"), str(sparse / "images"))
    assert "symmetry gradient" in analyze(str(run / "stage3_routing" / "model"), probe, str(sparse / "out"))
    numbers = json.loads((sparse / "out" / "numbers.json").read_text())
    mean, layer = numbers["mean"], numbers["layers"]["0"]
    assert 0 < mean["symmetry_gradient"] < 1 and mean["effective_experts"] <= 16
    real = sum(share for name, share in enumerate(layer["load"]["text"]) if name < 16)
    slots = layer["slots"]["text"] * real / layer["experts_per_text_token"]
    assert slots == pytest.approx(round(slots)) and 3 < layer["experts_per_text_token"] <= 12  # that many text tokens


def test_numbers_that_are_not_defined_are_null(sparse, monkeypatch):
    monkeypatch.setattr("evomoe.analysis.analyze.symmetry_gradients", lambda model, batches: {0: math.nan, 2: 0.5})
    analyze(str(sparse / "sparse"), ProbeOptions(str(sparse / "data.json"), str(sparse / "images")), str(sparse / "out"))
    numbers = json.loads((sparse / "out" / "numbers.json").read_text())
    assert numbers["layers"]["0"]["symmetry_gradient"] is None and numbers["mean"]["symmetry_gradient"] == 0.5
    assert "n/a" in (sparse / "out" / "report.md").read_text()


def test_bad_records_are_left_out_if_asked_for(sparse, capsys):
    records = json.loads((sparse / "data.json").read_text())
    records[0]["conversations"][0]["from"] = "nobody"
    (sparse / "data.json").write_text(json.dumps(records))
    assert main(arguments(sparse)) == 1
    assert "nobody" in capsys.readouterr().err
    assert main(arguments(sparse, "--on-bad-record", "skip")) == 0
    assert f"all {len(records) - 1} records of " in json.loads((sparse / "out" / "numbers.json").read_text())["probe"]


def test_experts_are_compared_with_a_model_of_their_own_family_alone(sparse, capsys):
    make_language_model().save_pretrained(sparse / "text")
    assert main(arguments(sparse, "--stage1", str(sparse / "text"))) == 1
    assert "text is of type 'llama', and the experts came from a 'llava'; name that" in capsys.readouterr().err
    assert not (sparse / "out").exists()
