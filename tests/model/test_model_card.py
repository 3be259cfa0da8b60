"""What lies beside the weights: the model card, and the module for processes that have not imported evomoe."""

import json
import os
import subprocess
import sys
from datetime import date
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import make_language_model, make_llava, make_processor
from transformers import AutoModelForImageTextToText

import evomoe.model.saving
from evomoe import upcycle
from evomoe.conversion.upcycled_folder import upcycle_folder
from evomoe.model.configuration import MoEConfig
from evomoe.model.families import sparse_config
from evomoe.model.loading import load_model
from evomoe.model.model_card import CARD, model_card
from evomoe.model.remote_code import REMOTE_MODULE

MOE = MoEConfig(base_model_type="llava", moe_layers=[0, 2])
CONFIG = sparse_config(make_llava().config, MOE)


def load_elsewhere(folder, tmp_path, options: str = "", hide_evomoe: bool = False) -> subprocess.CompletedProcess:
    """Loads a folder in a process that does not import evomoe itself."""
    code = (
        "import sys\n"
        + ("sys.modules['evomoe'] = None\n" if hide_evomoe else "")
        + f"from transformers import AutoModelForImageTextToText as A\nprint(type(A.from_pretrained({str(folder)!r}{options})).__name__)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf_home")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)


def test_a_folder_with_remote_code_loads_for_those_who_trust_it_and_only_for_them(tmp_path):
    folder = tmp_path / "model"
    upcycle(make_llava()).save_pretrained(folder, remote_code=True)
    trusting = load_elsewhere(folder, tmp_path, ", trust_remote_code=True")
    assert trusting.stdout.split()[-1:] == ["EvoMoELlavaForConditionalGeneration"], trusting.stderr
    refusing = load_elsewhere(folder, tmp_path)
    assert refusing.returncode != 0 and "trust_remote_code=True" in refusing.stderr
    without = load_elsewhere(folder, tmp_path, ", trust_remote_code=True", hide_evomoe=True)
    assert without.returncode != 0 and "evomoe" in without.stderr.splitlines()[-1]


def test_a_folder_is_without_code_unless_asked_and_keeps_it_when_saved_again(tmp_path):
    upcycle(make_llava()).save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert json.loads((tmp_path / "plain" / "config.json").read_text()).get("auto_map") is None
    plain = load_elsewhere(tmp_path / "plain", tmp_path, ", trust_remote_code=True")
    assert plain.returncode != 0 and "model type `evomoe`" in plain.stderr
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "with", remote_code=True)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "with")
    again.save_pretrained(tmp_path / "kept")
    assert (tmp_path / "kept" / f"{REMOTE_MODULE}.py").is_file()
    again.save_pretrained(tmp_path / "without", remote_code=False)
    assert not list((tmp_path / "without").glob("*.py"))
    assert json.loads((tmp_path / "without" / "config.json").read_text()).get("auto_map") is None


def test_conversion_of_a_folder_writes_card_and_remote_module(tmp_path):
    make_llava().save_pretrained(tmp_path / "dense")
    make_processor().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / CARD).write_text("---\nlicense: mit\n---\n# dense\n")
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse", remote_code=True)
    card = ModelCard.load(tmp_path / "sparse" / CARD)
    assert card.data.license == "mit" and card.data.library_name == "transformers" and "evomoe" in card.data.tags
    assert card.data.pipeline_tag == "image-text-to-text" and "run per token" in card.text
    trusting = load_elsewhere(tmp_path / "sparse", tmp_path, ", trust_remote_code=True")
    assert trusting.stdout.split()[-1:] == ["EvoMoELlavaForConditionalGeneration"], trusting.stderr


@pytest.mark.parametrize(("base", "named"), [("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"), ("", None)])
def test_the_card_s_header_is_what_the_hub_reads(base, named):
    config = sparse_config(make_llava().config, MOE)
    card = ModelCard(model_card(config, "EvoMoELlavaForConditionalGeneration", base, [("parameters", "3")], {"Training": "long"}))
    assert card.data.base_model == named and card.data.license is None
    for text in ("4, 1 per token |", "0, 2", "that of the base model", "## Training\n\nlong", "import evomoe"):
        assert text in card.text
    of_text = upcycle(make_language_model())
    assert "AutoModelForCausalLM" in model_card(of_text.config, type(of_text).__name__, base)


def test_folders_of_earlier_versions_still_load(tmp_path):
    """Their module imports ``evomoe.families``, and their configuration does not say how wide experts are."""
    model = upcycle(make_llava(), num_experts=2, expert_init="partition", router="linear")
    model.save_pretrained(tmp_path / "model", remote_code=True)
    module, config = tmp_path / "model" / f"{REMOTE_MODULE}.py", tmp_path / "model" / "config.json"
    assert "evomoe.auto" in module.read_text()
    module.write_text("from evomoe.families import AnyEvoMoEConfig  # noqa: F401\n")
    values = json.loads(config.read_text())
    assert values["evomoe"].pop("expert_share") == 2
    config.write_text(json.dumps(values))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert loaded.config.moe.expert_share == 2
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    trusting = load_elsewhere(tmp_path / "model", tmp_path, ", trust_remote_code=True")
    assert trusting.stdout.split()[-1:] == ["EvoMoELlavaForConditionalGeneration"], trusting.stderr


@pytest.mark.parametrize("has_card", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_pushing_brings_a_card_unless_the_repository_has_one(tmp_path, monkeypatch, has_card, trained):
    pushed, uploaded = [], []
    monkeypatch.setattr(evomoe.model.saving, "create_repo", lambda name, **_: SimpleNamespace(repo_id=f"me/{name}"))
    monkeypatch.setattr(evomoe.model.saving, "file_exists", lambda repo, file, **_: has_card)
    monkeypatch.setattr(ModelCard, "push_to_hub", lambda card, repo, **_: pushed.append((repo, card.content)))
    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin.push_to_hub", lambda model, repo, **_: uploaded.append(repo))
    model = upcycle(make_llava())
    if trained:
        model.save_pretrained(tmp_path)
        (tmp_path / CARD).write_text("---\nlicense: mit\n---\n# trained\n")
        model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    else:
        make_llava().save_pretrained(tmp_path)
        (tmp_path / CARD).write_text("---\nlicense: bsd\n---\n# the dense model's\n")
        model = upcycle(AutoModelForImageTextToText.from_pretrained(tmp_path))
    model.push_to_hub("mine")
    assert uploaded == ["me/mine"] and [repo for repo, _ in pushed] == ([] if has_card else ["me/mine"])
    if not has_card:
        assert ("# trained" if trained else "import evomoe") in pushed[0][1]
        assert trained or "license: bsd" in pushed[0][1] and "# the dense model's" not in pushed[0][1]


def test_a_text_only_folder_can_have_remote_code_and_a_dense_model_s_own_is_dropped(tmp_path):
    dense = make_language_model()
    dense.config.auto_map = {"AutoConfig": "x.XConfig", "AutoModelForCausalLM": "x.X"}
    dense.save_pretrained(tmp_path / "dense")
    make_processor().tokenizer.save_pretrained(tmp_path / "dense")
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse", remote_code=True)
    assert type(load_model(tmp_path / "sparse")).__name__ == "EvoMoELlamaForCausalLM"
    upcycle(dense).save_pretrained(tmp_path / "in_memory")
    assert "auto_map" not in json.loads((tmp_path / "in_memory" / "config.json").read_text())
    assert not list((tmp_path / "in_memory").glob("*.py"))


def test_only_the_main_process_writes_the_remote_module(tmp_path):
    upcycle(make_llava()).save_pretrained(tmp_path, remote_code=True, is_main_process=False)
    upcycle(make_llava()).save_pretrained(tmp_path, False, remote_code=True)  # where transformers' own has it
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.parametrize("header", [b"license:\tmit", b"license: [mit", b"license: \xe9"])
def test_an_unreadable_card_of_the_dense_model_costs_nothing_but_the_licence(tmp_path, header, caplog):
    make_llava().save_pretrained(tmp_path / "dense")
    make_processor().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / CARD).write_bytes(b"---\n" + header + b"\n---\n# dense\n")
    upcycle_folder(str(tmp_path / "dense"), tmp_path / "sparse")
    assert "that of the base model" in (tmp_path / "sparse" / CARD).read_text() and "README.md cannot be read" in caplog.text


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.dates() | NAMES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(["license", "model-index", "tags", "datasets"]), VALUES) | VALUES)
@example({"license": ["mit", "apache-2.0"]})
@example({"license": 2})
@example({"license": date(2024, 1, 1)})
@example({"license": []})
def test_whatever_the_dense_model_s_card_says_there_is_a_card(tmp_path, header):
    (tmp_path / CARD).write_text(f"---\n{yaml.safe_dump(header, allow_unicode=True)}---\n# dense\n", encoding="utf-8")
    written = model_card(CONFIG, "EvoMoELlava", str(tmp_path))
    named = header.get("license") if isinstance(header, dict) else None
    expected = (
        named
        if isinstance(named, str) or (named and isinstance(named, list) and all(isinstance(n, str) for n in named))
        else None
    )
    (tmp_path / "written.md").write_text(written, encoding="utf-8")
    assert (metadata_load(tmp_path / "written.md") or {}).get("license") == expected


@pytest.mark.parametrize(
    "header", [b"license: 2023-13-45", b"license: !!python/object:os.system {}", b"- a list", b"a: &a [*a]", b"[" * 3000]
)
def test_a_header_that_yaml_refuses_is_no_licence(tmp_path, header, caplog):
    (tmp_path / CARD).write_bytes(b"---\n" + header + b"\n---\n")
    assert "that of the base model" in model_card(CONFIG, "EvoMoELlava", str(tmp_path))
