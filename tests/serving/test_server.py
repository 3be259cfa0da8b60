"""The server: the same answers over HTTP as in a conversation, several at once, streamed; and what is refused before it starts."""

import base64
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

from evomoe import cli
from evomoe.serving.conversation import Conversation
from evomoe.serving.sampling import Sampling
from evomoe.serving.transformers_server import check_port, serve
from evomoe.support.errors import OptionError

needs_server = pytest.mark.skipif(not is_serve_available(), reason="needs the extra serve")


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def messages(words: str, picture: Path | None = None) -> list[dict]:
    parts: list[dict] = [{"type": "text", "text": words}]
    if picture is not None:
        url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": parts}]


@needs_server
def test_answers_over_http_are_those_of_a_conversation(checkpoint, workspace, monkeypatch, tmp_path):
    from openai import BadRequestError, OpenAI

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-such-cache"))
    pictures = sorted((workspace / "images").glob("*.png"))
    asked = [("what is this?", None), *(("what is this?", picture) for picture in pictures[:3]), ("what color?", pictures[0])]
    expected = []
    for words, picture in asked:
        talk = Conversation.load_from(checkpoint)
        if picture:
            talk.add_picture(str(picture))
        expected.append(talk.say(words, Sampling(max_new_tokens=12)))
    assert len(set(expected)) > 2 and all(expected)  # the picture matters
    port = free_port()
    server = serve(checkpoint, "127.0.0.1", port, non_blocking=True)
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

        def ask(number: int, stream: bool = False) -> str:
            words, picture = asked[number]
            answer = client.chat.completions.create(
                model=checkpoint, messages=messages(words, picture), max_tokens=12, temperature=0, stream=stream
            )
            if not stream:
                return answer.choices[0].message.content.strip()
            return "".join(piece.choices[0].delta.content or "" for piece in answer if piece.choices).strip()

        assert [model.id for model in client.models.list()] == [checkpoint]
        assert [ask(number) for number in range(len(asked))] == expected
        with ThreadPoolExecutor(8) as pool:
            assert [*pool.map(ask, [*range(len(asked))] * 2)] == expected * 2
            assert [*pool.map(lambda number: ask(number, stream=True), range(len(asked)))] == expected
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture")
        for words, picture, reason in (
            ("what?", broken, "cannot be read: "),
            ("look at <image>", None, "cannot be read: "),
            ("what " * 3000, None, "the model reads 256 at most"),
        ):
            with pytest.raises(BadRequestError) as refused:
                client.chat.completions.create(model=checkpoint, messages=messages(words, picture), max_tokens=2)
            assert reason in refused.value.response.text
    finally:
        server.kill_server()


@needs_server
def test_what_stands_in_the_way_is_said_before_the_model_is_loaded(checkpoint, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", checkpoint, "--port", str(port)]) == 1
        assert f"--port: cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
    for port in (-1, 70000):
        with pytest.raises(OptionError, match="must lie between 0 and 65535"):
            check_port("127.0.0.1", port)
    with pytest.raises(OptionError, match="^host: there is no 'no.such.host.invalid'"):
        check_port("no.such.host.invalid", 8000)
    assert cli.main(["serve", "no/such/folder"]) == 1


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_addresses_of_ipv6_are_addresses(monkeypatch):
    asked = []
    monkeypatch.setattr(socket.socket, "bind", lambda self, address: asked.append((self.family, address)))
    check_port("::1", 8000)
    check_port("127.0.0.1", 8000)
    assert asked == [(socket.AF_INET6, ("::1", 8000)), (socket.AF_INET, ("127.0.0.1", 8000))]


def test_without_the_extra_it_says_what_to_install(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("evomoe.serving.transformers_server.is_serve_available", lambda: False)
    assert cli.main(["serve", checkpoint]) == 1
    assert "pip install 'evomoe[serve]'" in capsys.readouterr().err
