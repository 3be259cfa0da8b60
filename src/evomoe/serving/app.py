"""``evomoe app``: a conversation in the browser, and beside it where the tokens went. Needs gradio.

Every visitor has a conversation of their own; the models are shared, and answer one question at a time.
"""

import contextlib
import copy
import html
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomoe.analysis.interventions import only_expert, shuffled_routers
from evomoe.model.budget import moe_restored, set_experts_per_token
from evomoe.model.sparse_model import is_sparse
from evomoe.serving.chat import load_conversations
from evomoe.serving.conversation import Conversation, ConversationError, Said
from evomoe.serving.look import COLOURS, page, page_under_another_picture
from evomoe.serving.sampling import Sampling
from evomoe.serving.transformers_server import check_port

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The app needs gradio: pip install 'evomoe[app]', or -e '.[app]' in a clone.") from error

TRAINED, SHUFFLED = "as trained", "routers shuffled"
UPLOAD, PIXELS = "20mb", 25_000_000
"""The largest file that may be uploaded, and the most pixels of a picture."""


@dataclass(frozen=True)
class Chip:
    """A token of the answer, and the expert, from 0, that came first in most layers."""

    word: str
    expert: int

    def html(self) -> str:
        """The word on its expert's colour."""
        colour = ",".join(map(str, COLOURS[self.expert % len(COLOURS)]))
        style = f"background:rgba({colour},0.6);color:#000;border-radius:4px;padding:.1rem .25rem;margin:1px;white-space:pre-wrap"
        return f'<span class="chip" style="{style}" title="expert {self.expert + 1}">{html.escape(self.word)}</span>'


@dataclass(frozen=True)
class Routers:
    """What the routers do while they answer.

    Attributes:
        kind: TRAINED, SHUFFLED or "expert N alone".
        experts_per_token: in place of what was trained; 0 for that.
    """

    kind: str = TRAINED
    experts_per_token: float = 0.0

    @contextlib.contextmanager
    def applied(self, conversation: Conversation) -> Iterator[None]:
        """Within the block; a dense model is left as it is."""
        model = conversation.model
        if not is_sparse(model):
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(moe_restored(model))
            if self.experts_per_token:
                try:
                    set_experts_per_token(model, self.experts_per_token)
                except ValueError as error:
                    raise ConversationError(str(error)) from error
            if self.kind == SHUFFLED:
                stack.enter_context(shuffled_routers(model, seed=0))
            elif self.kind != TRAINED:
                stack.enter_context(only_expert(model, int(self.kind.split()[1]) - 1))
            yield


class Models:
    """The models of the app, of which one answers at a time.

    Args:
        conversations: by the names that are shown.
    """

    def __init__(self, conversations: Mapping[str, Conversation]) -> None:
        self.conversations, self._one_at_a_time = dict(conversations), threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.conversations)

    def kinds(self) -> list[str]:
        """What the routers can be made to do."""
        experts = max((c.model.config.moe.num_experts for c in self.conversations.values() if is_sparse(c.model)), default=0)
        return [TRAINED, SHUFFLED, *(f"expert {n + 1} alone" for n in range(experts))] if experts else [TRAINED]

    def nothing_said(self) -> dict[str, Said]:
        return {name: Said() for name in self.conversations}

    def ask(
        self, said: Mapping[str, Said], words: str, pictures: list[str], sampling: Sampling, routers: Routers
    ) -> Iterator[tuple[dict[str, str], dict[str, Said] | None, dict[str, str]]]:
        """Asks all models; yields the answers so far and the words that were routed; at the end what was said and the pages.

        Raises:
            ConversationError: one of the models cannot be asked; then nothing was said to any.
        """
        answers, after, pages = dict.fromkeys(self.names, ""), dict(said), {}
        chips = dict.fromkeys(self.names, "")
        for name, conversation in self.conversations.items():
            own = copy.copy(conversation)  # the model, but what this visitor said
            own.said = said[name]
            for picture in pictures:
                own.add_picture(picture)
            for piece in self._answer(own, words, sampling, routers, pages, name):
                if isinstance(piece, Chip):
                    chips[name] += piece.html()
                else:
                    answers[name] += piece
                yield answers, None, chips
            after[name] = own.said
        yield answers, after, pages

    def under_another_picture(self, said: Mapping[str, Said], file: str) -> dict[str, str]:
        """The pages of the last answers' words under another picture, with the routers as they were trained.

        Raises:
            ConversationError: nothing was said about a picture yet, or this one does not fit.
        """
        pages = {}
        for name, conversation in self.conversations.items():
            own = copy.copy(conversation)
            own.said = said[name]
            with self._one_at_a_time:
                pages[name] = page_under_another_picture(own, name, file) if own.is_sparse else ""
        return pages

    def _answer(
        self, own: Conversation, words: str, sampling: Sampling, routers: Routers, pages: dict[str, str], name: str
    ) -> Iterator["str | Chip"]:
        pieces: queue.Queue[str | Chip | BaseException | None] = queue.Queue()

        def work() -> None:
            try:
                with self._one_at_a_time, routers.applied(own):
                    own.say(words, sampling, pieces.put, lambda word, expert: pieces.put(Chip(word, expert)))
                    pages[name] = page(own, f"{name}, {routers.kind}") if own.is_sparse else ""
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        thread.join()


def build(models: Models) -> gr.Blocks:
    """The app, which is yet to be launched."""
    with gr.Blocks(title="EvoMoE", analytics_enabled=False) as blocks:
        said = gr.State(models.nothing_said())
        last = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2):
                talk = gr.Chatbot(label="Conversation", height=480, buttons=["copy"])
                box = gr.MultimodalTextbox(
                    label="Question", placeholder="Ask about one or more pictures", file_types=["image"], file_count="multiple"
                )
                with gr.Row():
                    kind = gr.Dropdown(models.kinds(), value=TRAINED, label="Routers", interactive=True)
                    number = gr.Number(0, label="Experts per token (0: as trained)", minimum=0)
                    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature")
                with gr.Row():
                    again = gr.Button("Ask the last question again")
                    other = gr.UploadButton("Another picture under the same words", file_types=["image"])
                    clear = gr.Button("Begin anew")
            with gr.Column(scale=3):
                views = [gr.HTML(label=name, elem_classes=["routing"]) for name in models.names]
                saved = gr.File(label="The page as a file", interactive=False, file_count="multiple")

        def answered(asked: dict[str, Any], shown: list, own: dict[str, Said], settings: Sequence, if_refused: Sequence):
            """Asks the models; ``asked`` has text and files. ``if_refused`` is the conversation, what was said and what is asked then."""
            kind, number, temperature = settings
            words, files = asked.get("text") or "", [str(file) for file in asked.get("files") or []]
            before = {"own": own, "asked": asked, "shown": shown}
            question = [{"role": "user", "content": {"path": file}} for file in files] + [{"role": "user", "content": words}]
            sampling, routers = Sampling(temperature=float(temperature)), Routers(kind, float(number or 0))
            try:
                for answers, after, pages in models.ask(own, words, files, sampling, routers):
                    text = _together(answers)
                    shown_now = [*shown, *question, {"role": "assistant", "content": text}]
                    if after is None:
                        written = [
                            f'<p style="line-height:2">{pages[name]}</p>' if pages[name] else gr.skip() for name in models.names
                        ]
                        yield shown_now, gr.skip(), gr.skip(), gr.skip(), *written, gr.skip()
                    else:
                        frames = [_frame(pages[name]) for name in models.names]
                        yield shown_now, after, before, None, *frames, _files(pages)
            except ConversationError as error:
                gr.Warning(str(error))
                shown, own, asked = if_refused
                yield shown, own, gr.skip(), asked, *[gr.skip()] * len(views), gr.skip()

        def ask(asked: dict[str, Any], shown: list, own: dict[str, Said], kind: str, number: float, temperature: float):
            """Asks a question."""
            yield from answered(asked, shown, own, (kind, number, temperature), if_refused=(shown, own, asked))

        def ask_again(before: dict | None, shown: list, own: dict[str, Said], kind: str, number: float, temperature: float):
            """Asks the last question once more, under what is chosen now."""
            if before is None:
                gr.Warning("There is no question yet.")
                yield [gr.skip()] * (5 + len(views))
                return
            then = before["asked"], before["shown"], before["own"]
            yield from answered(*then, (kind, number, temperature), if_refused=(shown, own, gr.skip()))

        def swap(file: str, own: dict[str, Said]):
            """Shows where the last answer's words go under another picture."""
            try:
                pages = models.under_another_picture(own, file)
            except ConversationError as error:
                gr.Warning(str(error))
                return [gr.skip()] * (len(views) + 1)
            return [*(_frame(pages[name]) for name in models.names), _files(pages)]

        other.upload(swap, [other, said], [*views, saved], api_name="swap")
        settings, outputs = [kind, number, temperature], [talk, said, last, box, *views, saved]
        box.submit(ask, [box, talk, said, *settings], outputs, api_name="ask")
        again.click(ask_again, [last, talk, said, *settings], outputs, api_name="ask_again")
        clear.click(
            lambda: ([], models.nothing_said(), None, None, *[""] * len(views), None), None, outputs, api_name="begin_anew"
        )
    return blocks


def app(
    checkpoint: str,
    against: str | None,
    host: str = "127.0.0.1",
    port: int = 7860,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    **launch: Any,
) -> gr.Blocks:
    """Opens the app and lets it run until it is interrupted.

    Raises:
        OptionError: the port is taken, or a model cannot be loaded.
    """
    check_port(host, port)
    conversations = load_conversations(checkpoint, against, dtype, trust_remote_code)
    limited = {name: _limited(conversation) for name, conversation in conversations.items()}
    blocks = build(Models(limited))
    blocks.launch(server_name=host, server_port=port, share=False, max_file_size=UPLOAD, footer_links=[], **launch)
    return blocks


def _limited(conversation: Conversation) -> Conversation:
    return Conversation(conversation.model, conversation.processor, max_pixels=PIXELS)


def _together(answers: Mapping[str, str]) -> str:
    if len(answers) == 1:
        return next(iter(answers.values()))
    return "\n\n".join(f"**{name}**\n\n{answer}" for name, answer in answers.items())


def _frame(text: str) -> str:
    """A page inside the app, which can reach nothing of it."""
    if not text:
        return "<p>This model is dense: it has no experts.</p>"
    return f'<iframe sandbox="allow-scripts allow-downloads" title="Which expert took what" style="width:100%;height:820px;border:0" srcdoc="{html.escape(text)}"></iframe>'


def _files(pages: Mapping[str, str]) -> list[str] | None:
    folder, files = Path(tempfile.mkdtemp(prefix="evomoe-")), []
    for number, text in enumerate(text for text in pages.values() if text):
        files.append(str(folder / f"routing-{number + 1}.html"))
        Path(files[-1]).write_text(text, encoding="utf-8")
    return files or None
