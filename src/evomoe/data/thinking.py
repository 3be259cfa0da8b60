"""Models that think before they answer: whether an answer begins with that, and what is left of it without."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from evomoe.data.chat_template import ChatTemplate
from evomoe.data.turns import Record, Turn
from evomoe.support.errors import OptionError
from evomoe.support.processor import Processor

_OPENED = re.compile(r"[<\[◁]\|?(/?)(?:\w+:)?think(?:ing)?\|?[>\]▷]", re.IGNORECASE)
"""The marks of models that think before they answer: <think>, </think>, [THINK], <seed:think> and the like."""
_WITHOUT = ({}, {"enable_thinking": False}, {"thinking": False})
"""Arguments by which templates leave thinking out, in the order in which they are tried."""
_QUESTION = Record("a question", (), (Turn("user", "ping"),))


def not_thinking(processor: Processor, options: Mapping[str, Any]) -> dict[str, Any]:
    """The template's arguments with which an answer does not begin inside of thinking, unless ``options`` ask for that.

    Raises:
        OptionError: the template reads no such argument.
        ValueError: the template begins each answer with thinking.
    """
    given = dict(options)
    if any(value for name, value in given.items() if "think" in name):
        return given
    for more in _WITHOUT:
        with suppress(OptionError):
            template = ChatTemplate(processor, more | given)
            if not _is_thinking(template.question(_QUESTION)):
                return template.options
    ChatTemplate(processor, given)  # for its own refusal
    raise ValueError(
        "the chat template begins each answer inside of thinking; if you want that, ask for it: `template_options=enable_thinking=true`."
    )


def without_thinking(answer: str) -> str:
    """What a model answered after it thought."""
    closed = [found for found in _OPENED.finditer(answer) if found[1]]
    return answer[closed[-1].end() :] if closed else answer


def _is_thinking(question: str) -> bool:
    marks = list(_OPENED.finditer(question))
    return bool(marks) and not marks[-1][1]
