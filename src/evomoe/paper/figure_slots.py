"""Where the experts go: how many real experts each patch of a picture and each word of a question gets.

Not of the papers that are at hand: AnyExperts' says that important tokens get more.
"""

from collections.abc import Mapping

from evomoe.analysis.command import check_sparse, load_sparse, open_probe
from evomoe.analysis.experts_per_token import real_experts_by_token, split_by_place
from evomoe.analysis.plots import load_pyplot
from evomoe.analysis.token_plots import ShownQuestion, plot_experts_per_token
from evomoe.paper.drawing import write_figure
from evomoe.paper.options import FigureOptions
from evomoe.structure import image_token_ids

MOST = 6
"""Records that a picture has room for."""


def draw(checkpoints: Mapping[str, str], options: FigureOptions) -> str:
    """Draws the first of the probe's records for checkpoints by name, and returns what was written.

    Raises:
        ValueError: a checkpoint is dense or text-only, there are no pictures, or they are cut into tiles.
        ImportError: matplotlib is not installed.
    """
    load_pyplot()  # before the models are loaded
    configs = {name: check_sparse(checkpoint, options) for name, checkpoint in checkpoints.items()}
    named: dict[str, list[ShownQuestion]] = {}
    known: dict[str, object] = {}
    for name, checkpoint in checkpoints.items():
        probe = open_probe(checkpoint, configs[name], options)
        model, tokens = load_sparse(checkpoint, options).eval(), image_token_ids(configs[name])
        named[name] = []
        for item, picture in probe.with_one_picture(MOST):
            (batch,) = probe.collated([item], model, labels=False)
            experts_T = real_experts_by_token(model, batch)
            height, width = item["image_grid_thw"][0, 1:].tolist() if "image_grid_thw" in item else (1, 1)
            placed = split_by_place(experts_T, item["input_ids"], tokens, probe.tokenizer.decode, (height, width))
            named[name].append(ShownQuestion(picture, placed))
        if not named[name]:
            raise ValueError(f"--data: no record of {probe.name} has one picture; raise --records.")
        known[name] = {
            "checkpoint": checkpoint,
            "probe": probe.name,
            "questions": [{"patches": q.experts.patches_HW.tolist(), "words": q.experts.words} for q in named[name]],
        }
    return write_figure(options.output, "slots", lambda *paths: plot_experts_per_token(named, *paths), {"models": known})
