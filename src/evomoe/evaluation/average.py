"""The average of the paper's tables: seven benchmarks, MME's perception divided by 20.

MoE-LLaVA's average is another one: eight benchmarks, without MME.
"""

from collections.abc import Mapping

PAPER = ("vqav2", "gqa", "sqa", "textvqa-ocr", "pope", "mme", "mmbench")
MME_DIVISOR = 20
_MINI = "mini-"


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """The averages that these scores allow, each beside its formula.

    Args:
        scores: by benchmark. The paper's seven give one average, the seven small ones another; the two are never mixed, and
            what is not among the seven, as TextVQA without OCR words, is in neither.

    Returns:
        By formula; nothing for a set that is not whole.
    """
    found = {}
    for prefix in ("", _MINI):
        divisors = {prefix + name: MME_DIVISOR if name == "mme" else 1 for name in PAPER}
        if all(name in scores for name in divisors):
            terms = [name if divisor == 1 else f"{name} / {divisor}" for name, divisor in divisors.items()]
            formula = f"({' + '.join(terms)}) / {len(terms)}"
            found[formula] = mean_score({name: scores[name] for name in divisors})
    return found


def mean_score(scores: Mapping[str, float]) -> float:
    """The mean of any benchmarks' scores, MME's divided by 20."""
    return sum(score / (MME_DIVISOR if name.removeprefix(_MINI) == "mme" else 1) for name, score in scores.items()) / len(scores)
