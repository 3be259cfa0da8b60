"""How the words of an answer are chosen. Needs neither torch nor transformers."""

from dataclasses import dataclass
from typing import Any

from evomoe.recipe.options import LARGEST_SEED, LONGEST, check_whole
from evomoe.support.errors import OptionError

MOST = 100
"""By this much scores may be multiplied or divided; much more, and they are no numbers any more."""


@dataclass(frozen=True)
class Sampling:
    """How the words of an answer are chosen.

    Attributes:
        temperature: 0 always takes the likeliest word; larger values vary more.
        top_p: the words are drawn from the likeliest that have this probability together.
        top_k: the words are drawn from at most this many; 0 for any number.
        repetition_penalty: above 1, words that were said already become less likely.
        max_new_tokens: longest answer.
        seed: draws the words, when the temperature is not 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def check(self) -> None:
        """Raises OptionError if a value is out of its range."""
        if self.temperature != 0 and not 1 / MOST <= self.temperature <= MOST:
            raise OptionError("temperature", f"{self.temperature} must be 0, or lie between {1 / MOST:g} and {MOST}.")
        if not 0 < self.top_p <= 1:
            raise OptionError("top_p", f"{self.top_p} must lie above 0 and be at most 1.")
        check_whole("top_k", self.top_k, 0, LONGEST, hint="; 0 is any number")
        if not 1 / MOST <= self.repetition_penalty <= MOST:
            raise OptionError("repetition_penalty", f"{self.repetition_penalty} must lie between {1 / MOST:g} and {MOST}.")
        check_whole("max_new_tokens", self.max_new_tokens, 1, LONGEST)
        check_whole("seed", self.seed, 0, LARGEST_SEED)

    def for_generate(self) -> dict[str, Any]:
        """The same as settings of ``generate``."""
        settings: dict[str, Any] = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
        if self.temperature > 0:
            settings |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return settings
