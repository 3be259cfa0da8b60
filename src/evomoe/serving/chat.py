"""``evomoe chat``: a conversation in the terminal, or one answer for a script."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

from evomoe.model.loading import load_config
from evomoe.serving.conversation import Conversation, ConversationError, Said, about
from evomoe.serving.sampling import Sampling
from evomoe.support.errors import OptionError

HELP = """Write a question, or:
  /image FILE   show a picture with the next question; several are possible
  /experts      where the tokens of the last question and answer went
  /reset        begin anew
  /help         this text
  /quit         leave; so does Ctrl-D. Ctrl-C ends an answer."""


class Chat:
    """One or two models that are asked the same.

    Args:
        conversations: by the names under which they answer; names are shown if there are several.
        write: shows text as it comes, without a line's end.
    """

    def __init__(self, conversations: dict[str, Conversation], sampling: Sampling, write: Callable[[str], object]) -> None:
        self._conversations, self._sampling, self._write = conversations, sampling, write

    def run(self, lines: Iterable[str]) -> None:
        """Answers line after line until one of them, or the last, ends it."""
        for line in lines:
            try:
                if not self.take(line.strip()):
                    return
            except ConversationError as error:
                self._write(f"{error}\n")
            except KeyboardInterrupt:
                self._write("\n(The answer was ended; the question is forgotten.)\n")

    def take(self, line: str) -> bool:
        """Does what one line asks for; False if it asks to leave."""
        command, _, rest = line.partition(" ")
        if not line:
            return True
        if not line.startswith("/"):
            self.ask(line)
            return True
        rest = rest.strip()
        if command in ("/quit", "/exit"):
            return False
        if command == "/image":
            self._show_picture(rest)
        elif command == "/experts":
            self._show_experts()
        elif command == "/reset":
            for conversation in self._conversations.values():
                conversation.said = Said()
            self._write("The conversation is empty.\n")
        elif command == "/help":
            self._write(f"{HELP}\n")
        else:
            raise ConversationError(f"There is no {command}; /help lists what there is.")
        return True

    def add_pictures(self, files: Sequence[str]) -> None:
        """Shows pictures to all models with the next question, or to none of them."""
        with self._all_or_none():
            for file in files:
                for conversation in self._conversations.values():
                    conversation.add_picture(file)

    def ask(self, words: str) -> None:
        """Shows the answers of all models."""
        with self._all_or_none():
            for name, conversation in self._conversations.items():
                if len(self._conversations) > 1:
                    self._write(f"[{name}] ")
                conversation.say(words, self._sampling, self._write)
                self._write("\n")

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """What the block cannot do with one conversation it does with none."""
        before = {name: conversation.said for name, conversation in self._conversations.items()}
        try:
            yield
        except BaseException:
            for name, conversation in self._conversations.items():
                conversation.said = before[name]
            raise

    def _show_picture(self, file: str) -> None:
        if not file:
            raise ConversationError("Name a picture: /image FILE.")
        self.add_pictures([file := path_typed(file)])
        count = len(next(iter(self._conversations.values())).said.waiting)
        self._write(f"{Path(file).name}: the next question is about {'it' if count == 1 else f'these {count} pictures'}.\n")

    def _show_experts(self) -> None:
        for name, conversation in self._conversations.items():
            if len(self._conversations) > 1:
                self._write(f"[{name}]\n")
            if not conversation.is_sparse:
                self._write("This model is dense: it has no experts.\n")
            elif conversation.said.last is None or (load := conversation.said.last.load) is None:
                self._write("There is no answer yet.\n")
            else:
                self._write(f"{load.table()}\n{load.sentence()}\n")


def path_typed(text: str) -> str:
    """A path as it was typed; if there is no such file, as a terminal writes a path with blanks: in quotes, or after backslashes."""
    with contextlib.suppress(ValueError, OSError):
        if not Path(text).expanduser().exists() and len(parts := shlex.split(text)) == 1:
            return parts[0]
    return text


def chat(
    checkpoint: str,
    prompt: str | None,
    images: Sequence[str],
    against: str | None,
    sampling: Sampling,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Talks in the terminal; with a prompt it writes the answer alone, for scripts.

    Raises:
        OptionError: a picture or the other model cannot be loaded, or the prompt cannot be answered.
    """
    _take_any_bytes()
    talk = Chat(load_conversations(checkpoint, against, dtype, trust_remote_code), sampling, _write)
    with about("image"):
        talk.add_pictures(images)
    if prompt is not None:
        with about("prompt"):
            talk.ask(prompt)
        return
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # there is none on Windows
            import readline  # noqa: F401
        print(HELP)
    talk.run(_typed("> " if interactive else ""))


def load_conversations(checkpoint: str, against: str | None, dtype: str, trust_remote_code: bool) -> dict[str, Conversation]:
    """The models that are asked, by names that are as short as they can be.

    Raises:
        OptionError: the other model cannot be loaded, or is no other.
    """
    if against is not None and os.path.realpath(against) == os.path.realpath(checkpoint):
        raise OptionError("against", "it is the same model; name another one.")
    if against is not None:
        with _naming_other():  # a wrong name shall wait for no model
            load_config(against, trust_remote_code)
    conversations = {checkpoint: Conversation.load_from(checkpoint, dtype, trust_remote_code)}
    if against is not None:
        with _naming_other():
            conversations[against] = Conversation.load_from(against, dtype, trust_remote_code)
    return dict(zip(_short(list(conversations)), conversations.values(), strict=True))


@contextlib.contextmanager
def _naming_other() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise OptionError("against", str(error)) from error


def _take_any_bytes() -> None:
    """Lets a line that is no text, and a letter that the terminal does not have, be a sentence and a sign: they end no conversation."""
    for stream, instead in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if getattr(stream, "errors", None) == "strict":
            cast(io.TextIOWrapper, stream).reconfigure(errors=instead)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _typed(prompt: str) -> Iterable[str]:
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(/quit leaves.)")


def _short(names: list[str]) -> list[str]:
    """The last parts of paths in which they differ."""
    parts = [Path(name).parts for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-count:]) for part in parts]
        if len(set(short)) == len(names):
            return short
    return names
