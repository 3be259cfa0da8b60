"""The app: visitors apart from each other, interventions, and a walk through it in a real browser (`make test-browser`)."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from evomoe.serving.conversation import Conversation, ConversationError, Said
from evomoe.serving.sampling import Sampling

gr = pytest.importorskip("gradio")
from evomoe.serving.app import PIXELS, SHUFFLED, TRAINED, UPLOAD, Chip, Models, Routers, app, build  # noqa: E402

CHROMIUM = os.environ.get("EVOMOE_CHROMIUM", "")
in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: make test-browser")
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture
def models(checkpoint) -> Models:
    return Models({"mine": Conversation.load_from(checkpoint)})


@pytest.fixture
def pictures(workspace) -> list[str]:
    return sorted(map(str, (workspace / "images").glob("*.png")))


def ask(models: Models, said, words: str, pictures=(), routers: Routers = Routers()):  # noqa: B008
    *_, (answers, after, pages) = models.ask(said, words, list(pictures), SHORT, routers)
    return answers, after, pages


def test_two_visitors_never_see_each_other_s_pictures_or_words(models, pictures, checkpoint):
    first, second = models.nothing_said(), models.nothing_said()
    one, first, _ = ask(models, first, "what is this?", pictures[:1])
    other, second, pages = ask(models, second, "what color?", pictures[1:2])
    assert first["mine"].pictures == (pictures[0],) and second["mine"].pictures == (pictures[1],)
    assert models.conversations["mine"].said == Said()  # what is shared knows nothing
    alone = Conversation.load_from(checkpoint)
    alone.add_picture(pictures[1])
    assert other["mine"].strip() == alone.say("what color?", SHORT) and "what is this" not in pages["mine"]
    again, second, _ = ask(models, second, "and now?")
    assert again["mine"].strip() == alone.say("and now?", SHORT)


def test_interventions_change_the_answer_and_leave_the_model_as_it_was(models, pictures):
    assert models.kinds() == [TRAINED, SHUFFLED, *(f"expert {n} alone" for n in (1, 2, 3, 4))]
    answers = {}
    for kind in models.kinds():
        answers[kind], _, pages = ask(models, models.nothing_said(), "what is this?", pictures[:1], Routers(kind))
        assert kind in pages["mine"]
    assert len({answer["mine"] for answer in answers.values()}) > 3
    assert ask(models, models.nothing_said(), "what is this?", pictures[:1])[0] == answers[TRAINED]
    two, _, pages = ask(models, models.nothing_said(), "what is this?", pictures[:1], Routers(experts_per_token=2))
    assert '"slots": 2' in pages["mine"] and models.conversations["mine"].model.config.moe.num_experts_per_tok == 1
    with pytest.raises(ConversationError, match="whole number"):
        ask(models, models.nothing_said(), "what?", (), Routers(experts_per_token=1.5))


def test_words_are_coloured_while_the_answer_is_written(models, pictures):
    asked = models.ask(models.nothing_said(), "what is this?", pictures[:1], SHORT, Routers())
    written = [chips["mine"] for _, after, chips in asked if after is None]
    assert len({*written}) >= 5 and written[-1].count('class="chip"') == 7  # of eight the last is not routed
    assert all(later.startswith(earlier) for earlier, later in zip(written, written[1:], strict=False))
    assert Chip("<b>", 1).html().count("<") == 2 and "&lt;b&gt;" in Chip("<b>", 1).html()


def test_what_one_model_cannot_be_asked_is_asked_of_none(models, pictures):
    said = models.nothing_said()
    with pytest.raises(ConversationError, match="none.png"):
        ask(models, said, "what?", ["none.png"])
    with pytest.raises(ConversationError, match="nothing to answer"):
        ask(models, said, " ")
    assert said == models.nothing_said()


def verbs_of(blocks) -> dict:
    """What a page of the app may ask for, by name."""
    return {function.api_name: function.fn for function in blocks.fns.values()}


def test_pictures_are_limited_in_bytes_and_pixels(checkpoint, tmp_path, monkeypatch):
    launched = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda blocks, **options: launched.update(options))
    blocks = app(checkpoint, None, "127.0.0.1", 7999)
    assert launched["max_file_size"] == UPLOAD and launched["server_name"] == "127.0.0.1" and not launched["share"]
    Image.new("1", (5001, 5000)).save(tmp_path / "large.png")
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    asked = {"text": "what is this?", "files": [str(tmp_path / "large.png")]}
    [*_, (shown, *_)] = verbs_of(blocks)["ask"](asked, [], {"sparse": Said()}, TRAINED, 0, 0.0)
    assert not shown and f"the limit is {PIXELS:,} pixels" in warned[0]


def test_a_second_asking_that_is_refused_leaves_what_was_said(models, pictures, monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    verbs = verbs_of(build(models))
    asked = {"text": "what is this?", "files": pictures[:1]}
    *_, (shown, said, before, *_) = verbs["ask"](asked, [], models.nothing_said(), TRAINED, 0, 0.0)
    assert len(shown) == 3 and said["mine"].turns
    *_, (shown_again, said_again, *_) = verbs["ask_again"](before, shown, said, TRAINED, 9, 0.0)
    assert warned and shown_again == shown and said_again == said


def test_the_app_can_be_built_for_a_dense_model_and_for_two(models, workspace):
    both = Models(models.conversations | {"dense": Conversation.load_from(str(workspace / "model"))})
    assert both.names == ["mine", "dense"] and build(both) is not None
    answers, _, pages = ask(both, both.nothing_said(), "what is this?")
    assert answers.keys() == pages.keys() == {"mine", "dense"} and pages["mine"] and not pages["dense"]


@pytest.fixture
def address(checkpoint):
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    blocks = app(checkpoint, None, port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


@in_a_browser
def test_no_file_of_the_server_can_be_asked_for(address, workspace):
    import httpx2 as httpx

    for path in ("/etc/passwd", str(workspace / "sparse" / "config.json"), "../../etc/passwd"):
        for route in ("/gradio_api/file=", "/file="):
            assert httpx.get(f"{address}{route}{path}").status_code in (403, 404)


@in_a_browser
def test_a_walk_through_the_app(address, pictures, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visitor = browser.new_page(viewport={"width": 1500, "height": 1100}, accept_downloads=True)
        faults: list[str] = []
        visitor.on("pageerror", lambda error: faults.append(str(error)))
        visitor.goto(address)
        visitor.locator("input[type=file]").first.set_input_files(pictures[0])
        visitor.get_by_placeholder("Ask about").fill("what is this?")
        visitor.get_by_placeholder("Ask about").press("Enter")
        frame = visitor.frame_locator("iframe")
        frame.locator(".patch").first.wait_for(timeout=60_000)
        assert frame.locator(".patch").count() == 4 and frame.locator("#answer").inner_text()
        before = frame.locator(".patch").nth(2).evaluate("e => e.style.background")
        frame.locator(".patch").nth(2).click()
        assert frame.locator("#table tr").count() == 2 and "patch 3" in frame.locator("#token").inner_text()
        with visitor.expect_download() as picture:
            frame.get_by_role("button", name="Save as PNG").click()
        with Image.open(picture.value.path()) as image:
            assert image.width == 608 and image.height > 608 and len(image.convert("RGB").getcolors(10**6)) > 20
        frame.locator("#layer").fill("1")
        assert frame.locator("#which").inner_text() == "layer 0"
        frame.locator("#legend button").nth(1).press("Enter")  # by the keyboard
        assert frame.locator("#legend button").nth(1).get_attribute("aria-pressed") == "true"
        visitor.get_by_label("Routers").click()
        visitor.get_by_role("option", name="expert 2 alone").click()
        visitor.get_by_role("button", name="Ask the last question again").click()
        frame.get_by_text("expert 2 alone").wait_for(timeout=60_000)
        assert frame.locator(".patch").nth(2).evaluate("e => e.style.background") != before
        with visitor.expect_download() as download:
            visitor.locator('a[href*="routing-1.html"]').first.click()
        saved = Path(download.value.path()).read_text(encoding="utf-8")
        assert '<script id="data"' in saved and "expert 2 alone" in saved
        if os.environ.get("EVOMOE_SCREENSHOT"):
            visitor.screenshot(path=os.environ["EVOMOE_SCREENSHOT"])
        visitor.locator("input[type=file]").last.set_input_files(pictures[1])  # another picture under the same words
        frame.get_by_text("the same words under").wait_for(timeout=60_000)
        assert "of the words' choices are others" in frame.locator("#note").inner_text()
        other = browser.new_page()  # another visitor begins with nothing
        other.goto(address)
        other.get_by_placeholder("Ask about").wait_for()
        assert "what is this?" not in other.inner_text("body") and other.locator("iframe").count() == 0
        assert not faults
        browser.close()
