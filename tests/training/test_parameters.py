"""Parameter counts: against arithmetic, against models with weights, and against the paper's Table 8."""

from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import make_language_model, make_llava
from transformers import BertConfig, LlamaConfig, Qwen2MoeConfig

from evomoe import upcycle
from evomoe.cli import main
from evomoe.model.accounting import count_parameters
from evomoe.model.families import dense_config
from evomoe.model.loading import empty_models, load_config
from evomoe.model.structure import UnsupportedModelError
from evomoe.recipe.named_recipes import RECIPES
from evomoe.support.text import readable
from evomoe.training.trainable import names_in

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
D, F, L, V, KV = 32, 48, 4, 128, 16  # the tiny language model: hidden, FFN, layers, vocabulary, width of keys and values
FFN = 3 * D * F
TEXT = 2 * V * D + L * (2 * D * D + 2 * D * KV + FFN + 2 * D) + D  # embedding, head; attention, FFN, two norms; the last norm
PROJECTOR = 2 * (D * D + D)


def dtr(D: int, E: int = 4, H: int = 64, R: int = 16) -> int:
    """Parameters of one DTR: two hypernetworks (Eq. 5, 6) that share phi (Eq. 8)."""
    return 2 * (H * (D + 1) + (H + 1) * 3 * R * D) + E * (D + 1)


@pytest.fixture
def run(capsys):
    """Runs the verb; gives its output, or the error with the exit status 1."""

    def run(*arguments, status: int = 0) -> str:
        assert main(["params", *map(str, arguments)]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return run


def cells(text: str, start: str) -> list[str]:
    """The cells of the one table row that starts with ``start``."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start} ") or line.startswith(f"| {start}: ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def config(tmp_path) -> Path:
    """A folder that holds nothing but the tiny LLaVA's config.json."""
    make_llava().config.save_pretrained(tmp_path / "dense")
    assert [path.name for path in (tmp_path / "dense").iterdir()] == ["config.json"]
    return tmp_path / "dense"


def test_the_table_of_parts_is_arithmetic(config, run):
    out = run(config, "--num-experts", "3", "--num-experts-per-tok", "2", "--moe-layers", "1,2,3")
    router = 3 * dtr(D, E=3)
    after, activated = TEXT + 3 * 2 * FFN + router, TEXT + 3 * 1 * FFN + router
    assert cells(out, "language model")[1:] == [readable(n) for n in (TEXT, after, activated)]
    assert cells(out, "projector")[1:] == [readable(PROJECTOR)] * 3
    vision = count_parameters(make_llava(), part="vision").total
    assert cells(out, "vision tower")[1:] == [readable(vision)] * 3
    rest = PROJECTOR + vision
    assert cells(out, "all")[1:] == [readable(n + rest) for n in (TEXT, after, activated)]
    shares = [f"{readable(router)} ({100 * router / (n + rest):.2f}%)" for n in (after, activated)]
    assert cells(out, "of which router")[1:] == ["0", *shares]
    assert "LlavaForConditionalGeneration would become EvoMoELlavaForConditionalGeneration" in out
    assert "3 experts, 2 per token, in 3 of 4 layers (1, 2, 3); router dtr" in out
    assert "Text only" not in out


def test_the_table_of_stages_is_arithmetic(config, run):
    out = run(config)
    vision = count_parameters(make_llava(), part="vision").total
    dense = TEXT + PROJECTOR + vision
    for row, trained, of in (
        ("0 (align): projector", PROJECTOR, dense),
        ("1 (warmup): text+projector", TEXT + PROJECTOR, dense),
        ("2 (evolution): ffn", 2 * FFN, dense),
        ("3 (routing): router", 2 * dtr(D), dense + 2 * 3 * FFN + 2 * dtr(D)),
    ):
        assert cells(out, row)[1:] == [readable(trained), f"{100 * trained / of:.2f}%"]


@pytest.mark.parametrize("shared_expert", [False, True])
def test_counts_without_weights_are_those_of_the_converted_model(dense, shared_expert):
    options = {"num_experts": 3, "num_experts_per_tok": 2, "shared_expert": shared_expert}
    empty_dense, empty_sparse = empty_models(dense.config, "all", **options)
    for part in ("text", "projector", "vision", None):
        assert count_parameters(empty_dense, (), part) == count_parameters(dense, (), part)
    sparse = upcycle(dense, moe_layers="all", **options)
    for part in ("text", "projector", "vision", None):
        assert count_parameters(empty_sparse, (), part) == count_parameters(sparse, (), part)
    parts = [count_parameters(sparse, part=part) for part in ("text", "projector", "vision")]
    whole = count_parameters(sparse)
    for field in ("total", "activated", "router", "trained"):
        assert sum(getattr(part, field) for part in parts) == getattr(whole, field) > 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_text_only_model_says_that_all_its_tokens_are_text(tmp_path, run, tied):
    make_language_model(tie_word_embeddings=tied).config.save_pretrained(tmp_path)
    out, total = run(tmp_path / "config.json"), TEXT - tied * V * D
    assert "LlamaForCausalLM would become EvoMoELlamaForCausalLM" in out
    assert "every token is a text token" in out and "| vision tower" not in out and "| projector" not in out
    assert cells(out, "language model")[1] == cells(out, "all")[1] == readable(total)
    assert cells(out, "0 (align): nothing: no projector")[1:] == ["0", "0.00%"]
    assert cells(out, "1 (warmup): text")[1:] == [readable(total), "100.00%"]


def test_the_page_shows_what_the_command_prints(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = [line for line in PAGE.splitlines() if line.startswith("evomoe params docs/")]
    assert f"```\n{run(*command.split()[2:])}```" in PAGE


def test_a_stage_without_anything_to_train_says_so(config, run):
    out = run(config, "--router", "fixed")
    assert cells(out, "3 (routing): nothing: no router")[1:] == ["0", "0.00%"]


def test_an_evomoe_is_counted_as_it_is(tmp_path, config, run):
    options = ["--num-experts", "2", "--moe-layers", "0,3", "--router-options.rank", "2", "--shared-expert"]
    before = run(config, *options)
    sparse = upcycle(make_llava(), num_experts=2, moe_layers=[0, 3], router_options={"rank": 2}, shared_expert=True)
    sparse.config.save_pretrained(tmp_path / "sparse")
    out = run(tmp_path / "sparse")
    assert "LlavaForConditionalGeneration became EvoMoELlavaForConditionalGeneration" in out
    assert "2 experts, 1 per token, and a shared one, in 2 of 4 layers (0, 3)" in out
    assert out.partition("\n")[2] == before.partition("\n")[2]  # all but the first line
    options[options.index("0,3")] = "0 3"
    assert run(tmp_path / "sparse", *options) == out  # what the model says itself may be said again


def test_options_that_contradict_an_evomoe_are_refused_by_name(tmp_path, run):
    upcycle(make_llava(), num_experts=2, moe_layers=[0, 3]).config.save_pretrained(tmp_path)
    error = run(tmp_path, "--num-experts", "3", "--gate", "probability", "--moe-layers", "all", status=1)
    assert error == (
        f"evomoe: {tmp_path} is an EvoMoE already and is counted as its configuration says; leave out --num-experts, --gate, "
        "--moe-layers.\n"
    )


def test_the_dense_configuration_of_a_loaded_one_has_its_own_type(tmp_path):
    for model, model_type in ((make_llava(), "llava"), (make_language_model(), "llama")):
        upcycle(model).save_pretrained(tmp_path / model_type)
        dense = dense_config(load_config(tmp_path / model_type))
        assert dense.model_type == dense.to_dict()["model_type"] == model_type
        dense.save_pretrained(tmp_path / "dense")
        assert type(load_config(tmp_path / "dense")) is type(dense)


def test_the_dense_configuration_comes_back_from_the_sparse_one():
    dense = make_llava()
    before, config = dense.config.to_dict(), upcycle(dense).config
    config.architectures = ["EvoMoELlavaForConditionalGeneration"]  # as in a saved model
    after = dense_config(config)
    assert type(after).__name__ == "LlavaConfig" and after.to_dict() == {**before, "architectures": None}
    assert type(config).__name__ == "EvoMoELlavaConfig" and config.moe.num_experts == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-experts", "1"], "--num-experts: 1 is too few; a mixture needs at least 2"),
        (["--router", "dtrr"], "router: there is no 'dtrr'; did you mean 'dtr'? Choose from"),
        (["--moe-layers", "4"], "--moe-layers: [4] must be distinct indices from 0 to 3"),
    ],
)
def test_a_wrong_option_is_named(config, run, options, message):
    assert message in run(config, *options, status=1)


def test_a_model_that_cannot_be_counted_is_refused_with_the_reason(tmp_path, run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"{tmp_path}/none: there is no such folder" in run(tmp_path / "none", status=1)
    (tmp_path / "config.json").write_text("{")
    assert f"{tmp_path}/config.json: there is no model in it: " in run(tmp_path / "config.json", status=1)
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path}/folder: there is no model in it, for it has no config.json" in run(tmp_path / "folder", status=1)
    assert "the model's name is empty" in run("", status=1)
    partly_sparse = Qwen2MoeConfig(num_hidden_layers=2, hidden_size=32, intermediate_size=48, mlp_only_layers=[0])
    partly_sparse.save_pretrained(tmp_path)
    assert "sparse already" in run(tmp_path, status=1)
    with pytest.raises(UnsupportedModelError, match="sparse already"):  # though the one layer that was asked for is dense
        empty_models(partly_sparse, [0])
    make_llava().config.vision_config.save_pretrained(tmp_path)
    assert "neither image-text-to-text nor causal language models" in run(tmp_path, status=1)
    BertConfig(num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=2).save_pretrained(tmp_path)
    assert "evomoe: " in run(tmp_path, status=1)


# Table 8. The paper's numbers, ours and the reasons stand in docs/parameters.md, once; here they are computed anew.

FILES = {
    "Qwen2-0.5B": "qwen1.5-0.5b",
    "StableLM-1.6B": "stablelm-2-1.6b",
    "Qwen-1.8B": "qwen-1.8b",
    "Phi2-2.7B": "phi-2",
    "OpenChat-7B": "openchat-7b",
}
METHODS = {"dense": None, "MoE-LLaVA": "moe-llava", "EvoMoE": "evomoe"}


def table(heading: str) -> list[list[str]]:
    """The rows, without the header, of the table under a heading of docs/parameters.md."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.removeprefix("|").removesuffix("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


ROWS = table("Table 8, number by number")


def config_of(model: str, **text):
    """The configuration of a row of Table 8, with other values in its language model."""
    config = load_config(ROOT / "docs" / "table8" / f"{FILES[model]}.json")
    for name, value in text.items():
        setattr(config.text_config, name, value)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    return config


def language_model(config, recipe: str | None = None, placement: str = "alternating") -> tuple[float, float]:
    """Activated parameters of the language model, and those that train in any stage, in 10^9: dense, or by a recipe."""
    dense, sparse = empty_models(config, placement, **asdict(RECIPES[recipe or "evomoe"].moe))
    dense_total = count_parameters(dense, (), "text").total  # Stage I trains all of it
    if recipe is None:
        return dense_total / 1e9, dense_total / 1e9
    parts = RECIPES[recipe].stage3.train.split("+")
    names = set().union(*(names_in(sparse, part, sparse.config.moe.moe_layers) for part in parts))
    # Expert 0 is the dense model's FFN, which Stage I trained.
    counts = count_parameters(sparse, {name for name in names if ".experts.0." not in name}, "text")
    return counts.activated / 1e9, (dense_total + counts.trained) / 1e9


def test_the_page_has_every_row_of_table_8():
    assert [row[:2] for row in ROWS] == [[model, method] for model in FILES for method in METHODS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2]))
def test_a_row_of_table_8(row):
    """Our numbers are computed; they equal the paper's within rounding exactly where the page gives no reason."""
    model, method, *numbers, reason = row
    computed = language_model(config_of(model), METHODS[method])
    assert numbers[1::2] == [f"{number:.3f}" for number in computed]
    agrees = all(abs(float(paper) - ours) <= 0.05 for paper, ours in zip(numbers[::2], computed, strict=True))
    assert agrees == (reason == "")


def test_the_numbers_that_agree_are_counted():
    agree = [abs(float(row[i]) - float(row[i + 1])) <= 0.05 for row in ROWS for i in (2, 4)]
    assert f"{sum(agree)} of {len(agree)} numbers agree" in PAGE


def test_where_the_other_numbers_come_from():
    phi, qwen2 = config_of("Phi2-2.7B"), {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    llama, openchat = language_model(LlamaConfig())[0], config_of("OpenChat-7B")
    added = [number - language_model(openchat)[0] for number in language_model(openchat, "moe-llava")]
    computed = [
        language_model(phi, "moe-llava", "all"),
        (llama, *(llama + number for number in added)),
        language_model(config_of("Qwen2-0.5B", tie_word_embeddings=False), "evomoe")[:1],
        language_model(config_of("Qwen2-0.5B", tie_word_embeddings=False))[:1]
        + language_model(config_of("Qwen2-0.5B", tie_word_embeddings=False), "moe-llava")[:1],
        language_model(config_of("Qwen2-0.5B", **qwen2, num_key_value_heads=2))[:1]
        + language_model(config_of("Qwen2-0.5B", **qwen2, num_key_value_heads=2), "moe-llava"),
        language_model(config_of("Phi2-2.7B", vocab_size=100352))[:1],
    ]
    rows = table("Where the others come from")
    assert [row[2] for row in rows] == [", ".join(f"{number:.3f}" for number in numbers) for numbers in computed]
    for (_, paper, ours, verdict), _ in zip(rows, computed, strict=True):
        pairs = zip(paper.split(", "), ours.split(", "), strict=True)
        assert all(abs(float(a) - float(b)) <= 0.05 for a, b in pairs) == (verdict == "yes")


def test_no_one_router_gives_all_of_the_paper_s_numbers():
    """The parameters of a router per MoE layer and unit of width, from each rounded number: an interval per row."""
    llama = language_model(LlamaConfig())[0]
    rows, ours = table("One router size for all rows"), dtr(2048) / 2048
    bounds = []
    for model, activated, base, low, high, holds in rows:
        config = config_of(model.split(",")[0])
        dense = llama if "LLaMA" in model else language_model(config)[0]
        unit = -(-config.text_config.num_hidden_layers // 2) * config.text_config.hidden_size
        interval = [(float(activated) + margin - dense) * 1e9 / unit for margin in (-0.05, 0.05)]
        assert [base, low, high] == [f"{dense:.3f}", *(f"{bound:,.0f}" for bound in interval)]
        assert (holds == "yes") == (interval[0] <= ours <= interval[1])
        bounds.append(interval)
    assert f"ours has {ours:,.0f}" in PAGE
    for model in FILES:  # affine in the width, and nearly proportional: one size serves all rows, or none
        width = config_of(model).text_config.hidden_size
        assert dtr(width) / width == pytest.approx(ours, rel=1e-3)
    agreeing = [bound for bound, row in zip(bounds, rows, strict=True) if row[-1] == "yes"]
    low, high = max(bound[0] for bound in agreeing), min(bound[1] for bound in agreeing)
    assert len(agreeing) == 3 and low < high
    assert all(bound[1] < low or bound[0] > high for bound, row in zip(bounds, rows, strict=True) if row[-1] == "no")


def test_evomoe_stores_more_than_moe_llava_whatever_the_model():
    for model in FILES:
        stored = [
            count_parameters(empty_models(config_of(model), "alternating", **asdict(RECIPES[recipe].moe))[1], ()).total
            for recipe in ("moe-llava", "evomoe")
        ]
        assert stored[0] < stored[1]
