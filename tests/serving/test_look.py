"""The page: its numbers are the model's, its file needs nothing else, and what cannot be shown is said."""

import base64
import json
import re

import pytest
import torch
from tiny import make, make_processor
from transformers import AutoProcessor

from evomoe import cli, upcycle
from evomoe.analysis.recording import record_routing
from evomoe.analysis.token_routing import TokenRouting, other_choices
from evomoe.model.loading import load_model
from evomoe.serving.conversation import Conversation, ConversationError
from evomoe.serving.look import page, page_under_another_picture
from evomoe.serving.sampling import Sampling

SHORT = Sampling(max_new_tokens=5)


@pytest.fixture
def sparse(workspace):
    model = upcycle(load_model(workspace / "model"), expert_init="noise", init_options={"std": 0.5}, num_experts_per_tok=2,
                    gate="normalised", router="linear")  # fmt: skip
    torch.manual_seed(3)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    model.generation_config.eos_token_id = None
    return Conversation(model.eval(), AutoProcessor.from_pretrained(workspace / "model"))


@pytest.fixture
def picture(workspace) -> str:
    return str(next((workspace / "images").glob("*.png")))


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL).group(1))


def test_the_numbers_on_the_page_are_the_model_s(sparse, picture):
    sparse.add_picture(picture)
    sparse.say("what is this?", SHORT)
    data = data_of(page(sparse, "mine"))
    L, T, E, K = len(data["layers"]), len(data["tokens"]), len(data["experts"]), data["slots"]
    assert (L, E, K) == (2, 4, 2) and data["layers"] == [0, 2] and data["name"] == "mine"
    probs_LTE = torch.tensor([*base64.b64decode(data["probs"])]).view(L, T, E) / 255
    chosen_LTK = torch.tensor([*base64.b64decode(data["chosen"])]).view(L, T, K)
    ids = sparse.said.last.ids_T[None]
    whole = dict(sparse.said.last.inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        records = sparse.model(**whole, output_router_logits=True).records
    for number, layer in enumerate(data["layers"]):
        torch.testing.assert_close(probs_LTE[number], records[layer].routing.probs_TE, atol=0.003, rtol=0)
        assert torch.equal(chosen_LTK[number], records[layer].routing.index_TK)
    kinds = [token["kind"] for token in data["tokens"]]
    assert kinds[:-5].count("image") == 4 and "answer" not in kinds[:-5] and "question" not in kinds[-5:]
    boxes = [token["place"] for token in data["tokens"] if "place" in token]
    assert (
        boxes[3] == {"picture": 0, "left": 0.5, "top": 0.5, "right": 1.0, "bottom": 1.0, "of_whole": False} and not data["note"]
    )
    asked = "".join(token["text"] for token in data["tokens"] if token["kind"] == "question")
    assert asked.startswith("<|user|>") and "what" in asked and data["question"] == "what is this?"
    # What generation did with its cache, token by token, is what the page shows of the sequence as a whole.
    with record_routing(sparse.model) as recording:
        sparse.said = type(sparse.said)(waiting=(picture,))
        sparse.say("what is this?", SHORT)
    for number, layer in enumerate(data["layers"]):
        counts = torch.bincount(chosen_LTK[number, :-1].flatten(), minlength=4)  # the last token is never given to the model
        assert torch.equal(counts, recording.counts[layer].sum(0))


def test_the_same_words_under_another_picture(sparse, workspace, tmp_path):
    first, second, *_ = sorted((workspace / "images").glob("*.png"))
    with pytest.raises(ConversationError, match="no answer about a picture yet"):
        page_under_another_picture(sparse, "mine", str(second))
    sparse.add_picture(str(first))
    sparse.say("what is this?", SHORT)
    before, said = data_of(page(sparse, "mine")), sparse.said
    now = data_of(page_under_another_picture(sparse, "mine", str(second)))
    assert now["pictures"] != before["pictures"] and now["name"] == f"mine, the same words under {second.name}"
    assert [one["text"] for one in now["tokens"]] == [one["text"] for one in before["tokens"]]
    same = data_of(page_under_another_picture(sparse, "mine", str(first)))
    assert same["chosen"] == before["chosen"] != now["chosen"] and same["load"] == before["load"]
    assert same["note"].startswith("0% of the words' choices are others") and sparse.said is said
    with pytest.raises(ConversationError, match="does not exist"):
        page_under_another_picture(sparse, "mine", str(tmp_path / "none.png"))


def test_words_whose_choices_are_others_are_counted():
    names, layers, probs = ["expert 1", "expert 2"], [0], torch.rand(1, 3, 2)
    before = TokenRouting(names, layers, probs, torch.tensor([[[0, 1], [0, 1], [1, 0]]]), 2)
    after = TokenRouting(names, layers, probs, torch.tensor([[[1, 0], [0, 2], [1, 0]]]), 2)
    assert other_choices(before, after).tolist() == [[False, True, False]]


def test_a_page_says_whether_tokens_differ_in_their_number_of_experts(sparse, picture, workspace):
    sparse.add_picture(picture)
    sparse.say("what is this?", SHORT)
    data = data_of(page(sparse, "mine"))
    assert data["real"] == 4 and data["varies"] is False
    variable = upcycle(load_model(workspace / "model"), router="anyexperts", num_experts=8, num_experts_per_tok=3).eval()
    for block in variable.moe_blocks.values():
        torch.nn.init.normal_(block.router.importance.outer.weight, std=3.0)
    talk = Conversation(variable, sparse.processor)
    talk.add_picture(picture)
    talk.say("what is this?", SHORT)
    assert data_of(page(talk, "mine"))["varies"] is True


def test_the_page_needs_nothing_else_and_no_text_can_leave_its_place(sparse, picture):
    sparse.add_picture(picture)
    sparse.say("</script><b>what</b> is this?", SHORT)
    html = page(sparse, "mine")
    assert html.count("</script>") == 2 and "<\\/script><b>" in html
    assert data_of(html)["question"].startswith("</script>")
    assert not re.search(r"(src|href)=\"http|@import|https?://", html)
    assert data_of(html)["pictures"][0].startswith("data:image/png;base64,")


def test_tiles_have_no_place_but_the_words_are_shown(workspace):
    model = upcycle(make("llava-next"), expert_init="noise", init_options={"std": 0.1}).eval()
    talk = Conversation(model, make_processor())
    talk.say("what is this?", SHORT)
    last = talk.said.last
    from tiny import inputs_for

    inputs = inputs_for("llava-next", (1,))
    talk.said = type(talk.said)(talk.said.turns, (), (), type(last)(inputs, inputs["input_ids"][0], last.load))
    data = data_of(page(talk, "tiled"))
    assert data["note"].startswith("The patches cannot be shown: ") and not any("place" in token for token in data["tokens"])
    assert len(base64.b64decode(data["probs"])) == len(data["tokens"]) * 2 * 4


def test_virtual_experts_and_slots_without_one(workspace):
    options = {"num_experts": 8, "num_experts_per_tok": 4, "router_options": {"importance_width": 4}}
    model = upcycle(load_model(workspace / "model"), expert_init="partition", router="anyexperts", **options).eval()
    talk = Conversation(model, AutoProcessor.from_pretrained(workspace / "model"))
    talk.say("what is this?", SHORT)
    data = data_of(page(talk, "any"))
    numbers = {*base64.b64decode(data["chosen"])}
    assert max(numbers - {255}) < len(data["experts"]) and 255 in numbers  # tokens have different numbers of experts
    assert any(name.startswith("virtual") for name in data["experts"])


def test_the_command(sparse, workspace, picture, capsys):
    sparse.model.save_pretrained(workspace / "sparse")
    sparse.processor.save_pretrained(workspace / "sparse")
    out = workspace / "page.html"
    asked = [
        "look",
        str(workspace / "sparse"),
        "--prompt",
        "what?",
        "--image",
        picture,
        "--out",
        str(out),
        "--max-new-tokens",
        "3",
    ]
    assert cli.main(asked) == 0 and "open it in a browser" in capsys.readouterr().out
    assert data_of(out.read_text(encoding="utf-8"))["name"] == str(workspace / "sparse")
    assert cli.main(asked) == 1 and "exists" in capsys.readouterr().err
    dense = ["look", str(workspace / "model"), "--prompt", "what?", "--out", str(workspace / "other.html")]
    assert cli.main(dense) == 1 and "is dense: it has no experts" in capsys.readouterr().err
    assert cli.main([*dense[:-1], str(workspace / "x.html"), "--image", "none.png"]) == 1
    assert not (workspace / "other.html").exists()
