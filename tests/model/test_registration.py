"""What importing the package does: nothing heavy, and transformers' auto classes know EvoMoE checkpoints."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from tiny import make_language_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import evomoe
from evomoe import auto, upcycle
from evomoe.model import families
from evomoe.model import registration as _registration


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """A saved sparse text model."""
    torch.manual_seed(0)
    upcycle(make_language_model(), num_experts=2, router="linear").save_pretrained(tmp_path)
    return tmp_path


def test_importing_the_package_imports_neither_torch_nor_transformers():
    heavy = "[name for name in ('torch', 'transformers', 'numpy', 'tyro') if name in sys.modules]"
    result = run_python(f"import sys, evomoe; print(evomoe.__version__, {heavy})")
    assert result.stdout.strip() == f"{evomoe.__version__} []", result.stderr


def test_after_the_package_transformers_knows_the_checkpoints_and_the_finder_leaves_no_trace(folder):
    code = """
import evomoe, inspect, pickle, sys
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto import configuration_auto as auto

config = AutoConfig.from_pretrained(sys.argv[1])
twin = pickle.loads(pickle.dumps(config))
model_class = pickle.loads(pickle.dumps(AutoModelForCausalLM._model_mapping[type(config)]))
print(type(twin).__name__, twin.moe.num_experts, model_class.__name__)
finders = [type(finder).__name__ for finder in sys.meta_path]
print("_AutoClassesFinder" in finders, type(auto.__loader__).__name__, len(inspect.getsource(auto)) > 1000)
"""
    result = run_python(code, str(folder))
    expected = ["EvoMoELlamaConfig", "2", "EvoMoELlamaForCausalLM", "False", "SourceFileLoader", "True"]
    assert result.stdout.split() == expected, result.stderr


@pytest.mark.parametrize("first", ["modeling_utils", "models.auto.modeling_auto", "quantizers", "trainer"])
def test_any_module_of_transformers_may_be_the_first_that_is_imported(first):
    """Each imports the auto classes on its way; what registers then must not need a module that is half imported."""
    ran = run_python(f"import evomoe\nimport transformers.{first}")
    assert ran.returncode == 0, ran.stderr


def test_before_the_package_transformers_learns_of_the_checkpoints_at_once(folder, monkeypatch):
    finders = list(sys.meta_path)
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    with pytest.raises(ValueError, match="evomoe"):
        AutoConfig.from_pretrained(folder)
    _registration.install()
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "EvoMoELlamaConfig"
    assert sys.meta_path == finders


def edit_config(folder, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("part", [None, {}, {"num_experts": 4}])
def test_a_config_json_without_its_moe_part_is_refused(folder, part):
    edit_config(folder, lambda config: config.pop("evomoe") if part is None else config.update(evomoe=part))
    with pytest.raises(ValueError, match="model_type 'evomoe' but no 'evomoe' part with a 'base_model_type'"):
        AutoConfig.from_pretrained(folder)


def test_an_unknown_family_is_refused(folder):
    edit_config(folder, lambda config: config["evomoe"].update(base_model_type="llama9"))
    with pytest.raises(ValueError, match=r"family 'llama9' is unknown to transformers \d+\.\d+.*upgrade transformers"):
        AutoConfig.from_pretrained(folder)


def test_a_moe_part_with_a_mistake_is_named_when_the_model_is_built(folder):
    edit_config(folder, lambda config: config["evomoe"].update(router="dtrr"))
    with pytest.raises(ValueError, match="router: there is no 'dtrr'"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_configuration_and_model_class_pickle(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = pickle.loads(pickle.dumps(model.config))
    assert type(config) is type(model.config) and config.moe == model.config.moe and isinstance(config, LlamaConfig)
    assert pickle.loads(pickle.dumps(type(model))) is type(model)
    twin = pickle.loads(pickle.dumps(model))
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_classes_of_families_are_attributes_of_the_module_that_stays():
    assert auto.EvoMoELlamaConfig is families.config_class("llama")
    assert auto.EvoMoELlamaForCausalLM.__name__ == "EvoMoELlamaForCausalLM"
    for name in ("EvoMoENothingConfig", "EvoMoELlamaForNothing", "something"):
        with pytest.raises(AttributeError, match=name):
            getattr(auto, name)
