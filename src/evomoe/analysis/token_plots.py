"""Pictures of what happens to single tokens: patches of a picture, words of a question. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from evomoe.analysis.experts_per_token import QuestionExperts
from evomoe.analysis.plots import drawing

_LINE, _LINES = 46, 9
"""Characters of a line of words, and lines that are shown."""


@dataclass(frozen=True)
class ShownQuestion:
    """One record: its picture, and how many experts its tokens got."""

    picture: Image.Image
    experts: QuestionExperts


@drawing
def plot_experts_per_token(plt, named: Mapping[str, Sequence[ShownQuestion]]):
    """Each question a row: the picture, the experts of its patches, and its words on the colour of their experts; a model a column.

    Args:
        named: questions by the name of the model.
    """
    rows = max(map(len, named.values()))
    every = [
        value
        for questions in named.values()
        for question in questions
        for value in [*question.experts.patches_HW.flatten().tolist(), *(value for _, value in question.experts.words)]
    ]
    colours = plt.get_cmap("viridis")
    scale = plt.Normalize(min(every), max(max(every), min(every) + 1e-6))
    figure = plt.figure(figsize=(9 * len(named), 2.1 * rows + 0.9), layout="constrained")
    grid = figure.add_gridspec(rows, 3 * len(named), width_ratios=[1, 1, 2.6] * len(named))
    drawn = None
    for column, (name, questions) in enumerate(named.items()):
        for row, question in enumerate(questions):
            plain, heat, words = (figure.add_subplot(grid[row, 3 * column + part]) for part in range(3))
            plain.imshow(question.picture)
            drawn = heat.imshow(question.experts.patches_HW.numpy(), cmap=colours, norm=scale, extent=(0, 1, 1, 0))
            _write_words(words, question.experts.words, lambda value: colours(scale(value)))
            for axis in (plain, heat, words):
                axis.set_axis_off()
            if row == 0:
                plain.set_title(name, loc="left", fontweight="bold")
    if drawn is not None:
        figure.colorbar(
            drawn, ax=figure.axes, shrink=min(1.0, 3 / rows), label="real experts per token, mean over the MoE layers"
        )
    return figure


def _write_words(axis, words: Sequence[tuple[str, float]], colour) -> None:
    """Pieces of text in lines, each on its colour, white where that is dark."""
    axis.set_xlim(0, _LINE)
    axis.set_ylim(_LINES, 0)
    x, y = 0, 0.5
    for piece, value in words:
        shown = piece.replace("\n", "⏎") or " "
        shown = shown if len(shown) <= _LINE else shown[: _LINE - 1] + "…"
        if x + len(shown) > _LINE:
            x, y = 0, y + 1
        if y > _LINES:
            return
        background = colour(value)
        ink = "white" if sum(background[:3]) < 1.5 else "black"
        axis.fill_between([x, x + len(shown)], y - 0.42, y + 0.42, color=background, lw=0)
        axis.text(x, y, shown.replace("$", r"\$"), family="monospace", fontsize=7.5, color=ink, va="center")
        x += len(shown)
