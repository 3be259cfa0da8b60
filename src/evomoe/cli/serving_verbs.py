"""The verbs for a model that is trained: talk with it, hand it over."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from evomoe.cli.terminal import hide_loading_bars, when_interrupted
from evomoe.cli.verbs import Flat, ModelName, NewFolder
from evomoe.serving.sampling import Sampling
from evomoe.support.names import refuse_existing, refuse_missing


def look(
    checkpoint: ModelName,
    prompt: str,
    out: str,
    image: tuple[str, ...] = (),
    sampling: Annotated[Sampling, Flat] = Sampling(),  # noqa: B008
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Ask a sparse model, and write a page that shows which expert took which patch and which word.

    Args:
        checkpoint: folder or hub name of an EvoMoE.
        prompt: the question.
        out: HTML file to write; it needs neither a server nor a network.
        image: pictures that the question is about.
        sampling: how the words of the answer are chosen.
        dtype: precision of the weights; auto is the checkpoint's own.
        trust_remote_code: run code from the model's repository.
    """
    refuse_missing(checkpoint)
    refuse_existing(out, "file")
    sampling.check()
    from evomoe.serving.look import look

    hide_loading_bars()
    print(look(checkpoint, out, prompt, image, sampling, dtype, trust_remote_code))


def app(
    checkpoint: ModelName,
    against: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Talk with a model in the browser, and see where its tokens went.

    Args:
        checkpoint: folder or hub name.
        against: another model, which answers the same questions.
        host: address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 every network that it is in.
        port: port to listen at.
        dtype: precision of the weights; auto is the checkpoint's own.
        trust_remote_code: run code from the model's repository.
    """
    refuse_missing(checkpoint)
    if against is not None:
        refuse_missing(against)
    from evomoe.serving.app import app

    hide_loading_bars()
    app(checkpoint, against, host, port, dtype, trust_remote_code)


def serve_with(engine_options: Sequence[str]) -> Callable[..., None]:
    """The verb ``serve`` with what the command line has after ``--``."""

    def serve(
        checkpoint: ModelName,
        engine: Literal["transformers", "vllm"] = "transformers",
        host: str = "127.0.0.1",
        port: int = 8000,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        """Serve a model, dense or sparse, by OpenAI's protocol: chat completions with pictures, streaming.

        Args:
            checkpoint: folder or hub name.
            engine: transformers answers one request after the other; vllm, which you install yourself, batches them. What stands
                after `--` are the engine's own options.
            host: address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 every network that it is in.
            port: port to listen at.
            dtype: precision of the weights; auto is the checkpoint's own, of which vLLM halves float32.
            trust_remote_code: run code from the model's repository.
        """
        refuse_missing(checkpoint)
        if engine == "vllm":
            from evomoe.serving import vllm_engine

            vllm_engine.serve(checkpoint, host, port, dtype, trust_remote_code, engine_options)
        from evomoe.serving import transformers_server

        options = transformers_server.own_options(engine_options)
        hide_loading_bars()
        with when_interrupted(lambda: "The server has stopped."):
            transformers_server.serve(checkpoint, host, port, dtype, trust_remote_code, **options)

    return serve


def export(
    checkpoint: ModelName,
    out: NewFolder,
    to: Literal["dense", "native"] = "native",
    expert: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Write an EvoMoE as a model that needs no evomoe: for vLLM, SGLang, llama.cpp, or people who have transformers alone.

    Args:
        checkpoint: folder or hub name of an EvoMoE.
        out: folder to write; must not exist.
        to: native is the same model in a sparse family of transformers, where one fits; dense has one expert in every layer.
        expert: for ``--to dense``: the expert's number, from 1; or mean, for the mean of the experts' weights; by default 1.
        dtype: precision of the weights; auto is the checkpoint's own.
        trust_remote_code: run code from the model's repository.
    """
    refuse_missing(checkpoint)
    refuse_existing(out)
    from evomoe.conversion.exporting import export_folder

    hide_loading_bars()
    print(export_folder(checkpoint, out, to, expert, dtype, trust_remote_code))


def chat(
    checkpoint: ModelName,
    prompt: str | None = None,
    image: tuple[str, ...] = (),
    against: str | None = None,
    sampling: Annotated[Sampling, Flat] = Sampling(),  # noqa: B008
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Talk with a model, dense or sparse, about pictures.

    Args:
        checkpoint: folder or hub name.
        prompt: ask this, write the answer alone, and leave.
        image: pictures that the first question is about.
        against: another model, which answers the same questions.
        sampling: how the words of an answer are chosen.
        dtype: precision of the weights; auto is the checkpoint's own.
        trust_remote_code: run code from the model's repository.
    """
    refuse_missing(checkpoint)
    if against is not None:
        refuse_missing(against)
    sampling.check()
    from evomoe.serving import chat as terminal

    hide_loading_bars()
    terminal.chat(checkpoint, prompt, image, against, sampling, dtype, trust_remote_code)
