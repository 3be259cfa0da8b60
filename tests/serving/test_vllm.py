"""vLLM answers as transformers does: other routers, chunks, cached prefixes, compiled or not, over HTTP; and what it refuses.

It needs an environment of its own: `make test-serving` makes it and names its interpreter in EVOMOE_VLLM.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vllm_answers import prompts, save_model

from evomoe.serving.conversation import Conversation
from evomoe.serving.sampling import Sampling

PYTHON = os.environ.get("EVOMOE_VLLM", "")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="EVOMOE_VLLM names no interpreter with vLLM")
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
IN_CHUNKS = {"enable_prefix_caching": True, "max_num_batched_tokens": 48, "max_num_seqs": 8}
EAGER = IN_CHUNKS | {"enforce_eager": True}
KINDS = {
    "dtr": ({}, EAGER),
    "dtr, compiled": ({}, IN_CHUNKS),
    "dtr, two at a time": ({}, EAGER | {"max_num_batched_tokens": 20, "max_num_seqs": 2}),
    "linear, two experts, shared expert": ({"router": "linear", "num_experts_per_tok": 2, "shared_expert": True}, EAGER),
    "modality and shared router": ({"router": "modality+shared", "gate": "probability"}, EAGER),
    "anyexperts": (
        {
            "router": "anyexperts",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "router_options": {"virtual": "identity", "num_virtual": 2, "rho": 0.4},
        },
        EAGER,
    ),
    "zero computation": ({"router": "zero_computation", "num_experts_per_tok": 2}, EAGER),
    "top p": ({"router": "top_p", "gate": "probability"}, EAGER),
    "dtr, two processes": ({}, EAGER | {"tensor_parallel_size": 2}),
    "linear, two processes, compiled": ({"router": "linear", "num_experts_per_tok": 2}, IN_CHUNKS | {"tensor_parallel_size": 2}),
    "another activation": ({"text": {"hidden_act": "gelu_pytorch_tanh"}}, EAGER),
}


def answers(folder: Path, *arguments: str) -> dict:
    script = Path(__file__).with_name("vllm_answers.py")
    settings = os.environ | SETTINGS | {"VLLM_CACHE_ROOT": str(folder / "cache")}
    ran = subprocess.run([PYTHON, str(script), str(folder / "model"), *arguments], env=settings, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads([line for line in ran.stdout.splitlines() if line.startswith("{")][-1])  # vLLM may have the last word


def options(moe: dict, engine: dict) -> list[str]:
    return ["--options", json.dumps(moe), "--engine", json.dumps(engine)]


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers(kind, tmp_path):
    found = answers(tmp_path, *options(*KINDS[kind]))
    assert len({tuple(one) for one in found["expected"]}) > 8  # pictures and words matter
    assert found["answers"] == [found["expected"]] * 2


@pytest.mark.slow
@needs_vllm
def test_ffns_that_the_kernels_cannot_run_run_one_after_the_other(tmp_path):
    found = answers(tmp_path, *options({}, EAGER), "--model", "llava-on-phi")
    assert found["answers"] == [found["expected"]] * 2
    with pytest.raises(AssertionError, match="not gate, up and down maps without biases.*--enforce-eager"):
        answers(tmp_path / "compiled", *options({}, IN_CHUNKS), "--model", "llava-on-phi")


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("model, moe", [("text-only", {}), ("attached", {"virtual": "identity", "num_virtual": 2, "rho": 0.4})])
def test_language_models_alone_are_served(model, moe, tmp_path):
    found = answers(tmp_path, *options(moe, EAGER), "--model", model)
    assert len({tuple(one) for one in found["expected"]}) > 8 and found["answers"] == [found["expected"]] * 2


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("moe, engine", [({}, EAGER), ({"router": "linear", "num_experts_per_tok": 2}, IN_CHUNKS)])
def test_positions_of_three_parts_are_kept(moe, engine, tmp_path):
    """Qwen2.5-VL's mRoPE: chunks and cached prefixes begin in the middle of a picture."""
    found = answers(tmp_path, *options(moe, engine), "--model", "qwen")
    assert len({tuple(one) for one in found["expected"]}) > 8 and found["answers"] == [found["expected"]] * 2


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("to", ["dense", "native"])
def test_exported_models_are_served_without_us(to, tmp_path):
    """vLLM's own LLaVA wants other names of the tower's weights; its backend for any model takes them as they are."""
    found = answers(tmp_path, *options({"router": "linear"}, EAGER | {"model_impl": "transformers"}), "--export", to)
    assert len({tuple(one) for one in found["expected"]}) > 8 and found["answers"] == [found["expected"]] * 2


@needs_vllm
def test_attention_that_cpus_cannot_run_is_refused_before_the_first_question(tmp_path):
    save_model(tmp_path / "model", {"text": {"head_dim": 24}})
    serve = [str(Path(PYTHON).with_name("evomoe")), "serve", str(tmp_path / "model"), "--engine", "vllm"]
    said = subprocess.run(serve, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=300)
    assert said.returncode == 1 and "its attention heads are 24 wide, and vLLM's kernels for CPUs run" in said.stderr


@pytest.mark.slow
@needs_vllm
def test_a_lost_modality_is_seen(tmp_path):
    """The control of the tests above: were every token text, all answers about pictures would be others."""
    found = answers(tmp_path, *options({}, EAGER), "--blind")
    same = [a == b for a, b in zip(found["expected"], found["answers"][0], strict=True)]
    assert same == [not pictures for _, pictures in prompts()]


@pytest.mark.slow
@needs_vllm
def test_the_server_answers_as_a_conversation_does(tmp_path):
    from openai import OpenAI

    folder = tmp_path / "model"
    save_model(folder, {})
    pictures, asked = [], []
    for number, picture in enumerate([pictures[0] for _, pictures in prompts() if pictures][:4]):
        picture.save(tmp_path / f"{number}.png")
        pictures.append(tmp_path / f"{number}.png")
    expected = []
    for words, file in [("what is the red shape", None), *(("how many are there", file) for file in pictures)]:
        talk = Conversation.load_from(str(folder))
        content: list[dict] = [{"type": "text", "text": words}]
        if file:
            talk.add_picture(str(file))
            url = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        expected.append(talk.say(words, Sampling(max_new_tokens=12)))
        asked.append([{"role": "user", "content": content}])
    assert len({*expected}) == len(expected)
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    command = [str(Path(PYTHON).with_name("evomoe")), "serve", str(folder), "--engine", "vllm", "--port", str(port)]
    engine = ["--enforce-eager", "--max-model-len", "256", "--block-size", "32", "--limit-mm-per-prompt", '{"image": 1}']
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [*command, "--dtype", "float32", "--", *engine],
            env=os.environ | SETTINGS,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")

        def ask(number: int, stream: bool = False) -> str:
            answer = client.chat.completions.create(
                model=str(folder),
                messages=asked[number],
                max_tokens=12,
                temperature=0,
                stream=stream,
                extra_body={"ignore_eos": True},
            )
            if not stream:
                return answer.choices[0].message.content.strip()
            return "".join(piece.choices[0].delta.content or "" for piece in answer if piece.choices).strip()

        everything = [*range(len(asked))]
        # vLLM holds back the bytes of a letter that is not whole.
        expected = [words.rstrip("\ufffd") for words in expected]
        assert [ask(number) for number in everything] == expected
        with ThreadPoolExecutor(16) as pool:
            assert [*pool.map(ask, everything * 4)] == expected * 4
            assert [*pool.map(lambda number: ask(number, stream=True), everything)] == expected
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])
