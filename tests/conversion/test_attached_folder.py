"""A folder of a sparse model is attached from the command line, counted and trained further."""

import json

import pytest
import torch
from tiny import make, make_records, make_tokenizer, write_workspace

from evomoe.analysis.analyze import describe
from evomoe.cli import main
from evomoe.conversion.attaching import attach, attach_folder
from evomoe.model.loading import load_model
from evomoe.recipe.options import AttachOptions
from evomoe.support.errors import OptionError
from evomoe.training.trainable import set_trainable


def test_parameters_of_an_attached_folder_are_counted(tmp_path, capsys):
    attach(make("qwen3-moe")).save_pretrained(tmp_path / "any")
    assert main(["params", str(tmp_path / "any")]) == 0
    text = capsys.readouterr().out
    assert "Qwen3MoeForCausalLM became EvoMoEQwen3MoeForCausalLM" in text and "before" in text
    assert "3 (routing): router" in text and "2 (evolution)" not in text
    assert main(["params", str(tmp_path / "any"), "--num-experts", "3"]) == 1
    model = attach(make("qwen3-moe"))
    with pytest.raises(ValueError, match="has no parameters in 'ffn'"):
        set_trainable(model, "ffn", [0])


def test_a_folder_is_attached_from_the_command_line_and_trained_further(tmp_path, capsys):
    folder = write_workspace(tmp_path)
    model = make("qwen3-moe")
    model.resize_token_embeddings(max(make_tokenizer().get_vocab().values()) + 1)
    model.save_pretrained(tmp_path / "sparse")
    make_tokenizer().save_pretrained(tmp_path / "sparse")
    arguments = [
        "attach",
        str(tmp_path / "sparse"),
        str(tmp_path / "any"),
        "--router-options.rho",
        "0.25",
        "--router-options.importance-width",
        "8",
    ]
    assert main(arguments) == 0
    assert (
        "EvoMoEQwen3MoeForCausalLM, 16 experts and 5 virtual ones in layers 0, 2, 3; 4.33333 to 6.33333"
        in capsys.readouterr().out
    )
    assert "A mixture of experts whose router EvoMoE replaced" in (tmp_path / "any/README.md").read_text()
    records = [{"id": n, "conversations": r["conversations"]} for n, r in enumerate(make_records(8))]
    for record in records:
        record["conversations"][0]["value"] = record["conversations"][0]["value"].replace("<image>", "").strip()
    (folder / "words.json").write_text(json.dumps(records))
    steps = ["--stage3.steps", "2", "--stage3.batch-size", "2", "--stage3.accumulation", "1"]
    assert main(["train", "--stages", "3", "--model", str(tmp_path / "any"), "--data", str(folder / "words.json"),
                 "--output", str(tmp_path / "run"), *steps]) == 0  # fmt: skip
    assert "16 experts (the base model's own), 4 per token" in (tmp_path / "run/report.md").read_text()
    before, after = load_model(tmp_path / "any", "float32"), load_model(next((tmp_path / "run").glob("*/model")), "float32")
    assert describe(after).startswith("EvoMoEQwen3MoeForCausalLM, 16 experts (the base model's own), 4 per token")
    changed = {n for n, w in before.state_dict().items() if not torch.equal(w, after.state_dict()[n])}
    assert changed and all(".experts.router." in name for name in changed)
    assert main(arguments) == 1 and "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:2], str(tmp_path / "new"), "--router-options.gate", "probability"])
    assert "--router-options.gate" in capsys.readouterr().err
    with pytest.raises(OptionError, match="router 'anyexperts' takes no 'gate'"):
        attach_folder(str(tmp_path / "sparse"), tmp_path / "new", AttachOptions(router_options={"gate": "probability"}))
