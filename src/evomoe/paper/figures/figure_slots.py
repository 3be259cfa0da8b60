"""Where the experts go: how many real experts each patch of a picture and each word of a question gets.

Not of the papers that are at hand: AnyExperts' says that important tokens get more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from PIL import Image
from torch import Tensor

from evomoe.analysis.analyze import check_takes_pictures, load_sparse, open_probe
from evomoe.analysis.experts_per_token import real_experts_by_token, split_by_place
from evomoe.analysis.plots import load_pyplot
from evomoe.analysis.token_plots import ShownQuestion, plot_experts_per_token
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.prepared import prepare
from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.loading import load_processor
from evomoe.model.sparse_model import SparseModel
from evomoe.model.structure import image_token_ids
from evomoe.paper.figures.drawing import write_figure
from evomoe.paper.figures.figure_options import FigureOptions
from evomoe.support.device import placed
from evomoe.support.errors import OptionError
from evomoe.support.processor import Processor, tokenizer_of

MOST = 6
"""Questions that a picture has room for."""

Shown = tuple[Mapping[str, Tensor], Image.Image]
"""A model's inputs for one question, and its picture."""


def draw(checkpoints: Mapping[str, str], options: FigureOptions) -> str:
    """Draws the first of the probe's records, or some questions of benchmarks, for checkpoints by name.

    Returns:
        What was written.

    Raises:
        ValueError: a checkpoint is dense or text-only, there are no pictures, or they are cut into tiles.
        ImportError: matplotlib is not installed.
    """
    load_pyplot()  # before the models are loaded
    configs = {name: check_takes_pictures(checkpoint, options) for name, checkpoint in checkpoints.items()}
    named: dict[str, list[ShownQuestion]] = {}
    known: dict[str, object] = {}
    for name, checkpoint in checkpoints.items():
        model, tokens = load_sparse(checkpoint, options).eval(), image_token_ids(configs[name])
        processor = load_processor(checkpoint, options.trust_remote_code)
        if options.data:
            source, shown = _records(checkpoint, configs[name], model, options)
        else:
            source, shown = _questions(processor, model, options)
        decode = tokenizer_of(processor).decode
        named[name] = []
        for inputs, picture in shown:
            experts_T, ids_T = real_experts_by_token(model, inputs), inputs["input_ids"][0].cpu()
            named[name].append(ShownQuestion(picture, split_by_place(experts_T, ids_T, tokens, decode, inputs)))
        known[name] = {
            "checkpoint": checkpoint,
            "probe": source,
            "questions": [{"patches": q.experts.patches_HW.tolist(), "words": q.experts.words} for q in named[name]],
        }
    return write_figure(options.output, "slots", lambda *paths: plot_experts_per_token(named, *paths), {"models": known})


def _records(checkpoint: str, config: EvoMoEConfig, model: SparseModel, options: FigureOptions) -> tuple[str, list[Shown]]:
    probe = open_probe(checkpoint, config, options)
    shown: list[Shown] = [
        (next(probe.collated([item], model, labels=False)), picture) for item, picture in probe.with_one_picture(MOST)
    ]
    if not shown:
        raise OptionError("data", f"no record of {probe.name} has one picture; raise `records`.")
    return probe.name, shown


def _questions(processor: Processor, model: SparseModel, options: FigureOptions) -> tuple[str, list[Shown]]:
    """As many questions of each benchmark as there is room for, drawn at random but always the same."""
    share = max(1, MOST // len(options.benchmarks))
    evaluation = replace(options.evaluation(), batch_size=1, limit=share)

    def of(name: str) -> Iterator[Shown]:
        prepared = prepare(BENCHMARKS[name], processor, evaluation)
        for number in range(min(share, len(prepared.prompts))):
            batch = prepared.prompts[number]
            if (picture := prepared.questions[batch.index[0]].picture) is not None:
                yield placed(batch.inputs, model), prepared.prompts.shape.fit(picture.open())

    shown = [one for name in options.benchmarks for one in of(name)][:MOST]
    if not shown:
        raise OptionError(
            "benchmarks",
            f"none of the questions of {', '.join(options.benchmarks)} that were drawn has a picture. Name another benchmark, or `data`.",
        )
    return f"questions of {', '.join(options.benchmarks)}", shown
