"""The verbs of the command line. Imports of torch and transformers wait until a verb needs them."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from evomoe.analysis.probe_options import ProbeOptions
from evomoe.cli.listing import TABLES
from evomoe.cli.router_flags import flat, plain_recipe, typed_recipe, value_of
from evomoe.cli.terminal import RESUME, hide_loading_bars, refuse, when_interrupted
from evomoe.evaluation.benchmark import ProtocolName
from evomoe.evaluation.evaluation_options import EvaluationOptions
from evomoe.paper.figures import FIGURES
from evomoe.paper.figures.figure_options import FigureOptions
from evomoe.recipe.dry_run_options import DryRunOptions
from evomoe.recipe.named_recipes import RECIPES
from evomoe.recipe.named_values import NamedValues
from evomoe.recipe.options import AttachOptions, ConversionOptions, MoEOptions
from evomoe.recipe.recipe import YAML, Recipe
from evomoe.recipe.run_folder import RunFolder, check_paths, results_folder
from evomoe.support.errors import OptionError, no_such, plain, with_flags
from evomoe.support.names import refuse_existing, refuse_missing
from evomoe.support.processes import is_main_process

Flat = tyro.conf.arg(name="")
ModelName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
NewFolder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]

if TYPE_CHECKING:  # checkers take literals only
    FigureName = TableName = str
else:
    FigureName, TableName = Literal[*FIGURES], Literal[*TABLES]


def demo(output: str = "runs/demo", resume: bool = True) -> None:
    """The whole journey on two CPU cores in minutes: dense model, expert evolution, routing, scores, report.

    Args:
        output: run folder. A finished run is left alone and a new folder is named after it.
        resume: go on with an unfinished run in that folder.
    """
    from evomoe.demo import run_demo

    hide_loading_bars()
    with when_interrupted(lambda: "The same command goes on where it stopped."):
        print(run_demo(output, resume))


def train_from(arguments: list[str]) -> Callable[..., None]:
    """The verb ``train`` with the defaults of the recipe that the arguments name."""
    name = value_of("--recipe", arguments) or _of_begun_run(arguments) or "evomoe"
    from_file = Path(name).suffix in (".json", *YAML)
    if not from_file and name not in RECIPES:
        refuse(OptionError("recipe", f"{no_such(name, RECIPES)}, or name a recipe.json or a .yaml file."))
    if value_of("--lr", arguments):  # what many will try, and too short for the parser to guess what is meant
        refuse("each stage has its own `lr`: `stage1.learning_rate`; see `evomoe train --help`.")
    if from_file:
        try:
            base = Recipe.load(name)
        except (ValueError, OSError) as error:
            refuse(OptionError("recipe", plain(error)))
        if base.trust_remote_code and not {"--trust-remote-code", "--no-trust-remote-code"} & {*arguments}:
            refuse(
                OptionError(
                    "recipe", f"{name} asks to run code from the model's repository. If you trust it, add --trust-remote-code."
                )
            )
    else:
        base = RECIPES[name]
    base = replace(base, **{needed: tyro.MISSING for needed in ("model", "data", "output") if not getattr(base, needed)})

    router = value_of("--router", arguments) or base.moe.router
    if router != base.moe.router:  # the options are the other router's
        base = replace(base, moe=replace(base.moe, router_options={}))
    shown = typed_recipe(base, router, arguments)

    def train(
        options: Any = shown,
        recipe: str = name,
        dry: Annotated[DryRunOptions, Flat] = DryRunOptions(),  # noqa: B008
        resume: bool = False,
        resume_anyway: bool = False,
    ) -> None:
        """Train a dense VLM into an EvoMoE on your own data, in stages.

        Args:
            options: the run.
            recipe: where the defaults come from: a name, see `evomoe list recipes`, a YAML file, or the recipe.json of another run.
            dry: what the run would be, told beforehand.
            resume: go on with the unfinished run in the output folder.
            resume_anyway: go on even if weights, data or the number of processes have changed since the run began.
        """
        options = plain_recipe(options, base, arguments)
        dry.check()
        check_paths(options, resume or resume_anyway)
        if dry.dry_run:
            from evomoe.training.dry_run import describe

            told = with_flags(describe(options, resume, resume_anyway, dry))
            if is_main_process():
                print(told)
            return
        from evomoe.training.run import run

        folder = RunFolder(options.output)
        hide_loading_bars()
        with when_interrupted(lambda: RESUME if folder.can_resume() else "The same command starts anew."):
            trained = run(options, resume, resume_anyway=resume_anyway)
        if is_main_process():
            print(f"Trained model: {trained}")
            if folder.report.is_file():
                print(f"Report: {folder.report}")

    train.__annotations__["options"] = flat(type(shown))
    return train


def _of_begun_run(arguments: list[str]) -> str | None:
    """The recipe of the run that the arguments go on with, so that they need not repeat it."""
    output = value_of("--output", arguments) if {"--resume", "--resume-anyway"} & {*arguments} else None
    return str(RunFolder(output).recipe) if output and RunFolder(output).has_begun() else None


def print_recipe(name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")] = "evomoe") -> None:
    """Print a recipe as YAML with the meaning of every option, to be changed by hand: evomoe recipe > mine.yaml.

    Args:
        name: a name, see `evomoe list recipes`, a recipe's file, or a run's folder.
    """
    from evomoe.recipe.commented_yaml import commented_yaml

    if name not in RECIPES and not Path(name).exists():
        raise OptionError("name", f"there is no recipe or file '{name}'; recipes are {', '.join(RECIPES)}.")
    print(commented_yaml(RECIPES[name] if name in RECIPES else Recipe.load(name)), end="")


def upcycle(
    dense: ModelName,
    out: NewFolder,
    moe: Annotated[MoEOptions, Flat],
    moe_layers: str = "alternating",
    expert_init: str = "replicate",
    init_options: NamedValues | None = None,
    options: Annotated[ConversionOptions, Flat] = ConversionOptions(),  # noqa: B008
) -> None:
    """Convert a dense model into a mixture of experts, without training.

    Args:
        dense: folder or hub name of the dense model.
        out: folder to write; must not exist.
        moe: the mixture of experts.
        moe_layers: alternating, all, without_first, or indices separated by commas.
        expert_init: where the experts come from.
        init_options: options of that initialiser, as name=value; see `evomoe list inits`.
        options: how it is loaded and written.
    """
    refuse_missing(dense)
    refuse_existing(out)
    from evomoe.conversion.upcycled_folder import upcycle_folder

    hide_loading_bars()
    made = {"expert_init": expert_init, "moe_layers": moe_layers, "init_options": init_options}
    print(with_flags(upcycle_folder(dense, out, **made, **asdict(options), **asdict(moe))))


def attach(
    sparse: ModelName,
    out: NewFolder,
    moe: Annotated[AttachOptions, Flat] = AttachOptions(),  # noqa: B008
    options: Annotated[ConversionOptions, Flat] = ConversionOptions(),  # noqa: B008
) -> None:
    """Give a model that is sparse already (Mixtral, Qwen-MoE, OLMoE, DeepSeek ...) a variable number of experts per token.

    Args:
        sparse: folder or hub name of the model; its experts and the weights of its routers are kept.
        out: folder to write; must not exist.
        moe: its new routers.
        options: how it is loaded and written.
    """
    refuse_missing(sparse)
    refuse_existing(out)
    from evomoe.conversion.attaching import attach_folder

    hide_loading_bars()
    print(attach_folder(sparse, out, moe, **asdict(options)))


def params(
    model: ModelName,
    moe: Annotated[MoEOptions, Flat],
    moe_layers: str = "alternating",
    trust_remote_code: bool = False,
) -> None:
    """Count parameters before and after conversion: by part, per token, by stage. Loads no weights.

    Args:
        model: folder, hub name or config.json of a dense model; or of an EvoMoE, which is counted as it is.
        moe: the mixture of experts that a dense model would become.
        moe_layers: alternating, all, without_first, or indices separated by commas.
        trust_remote_code: run code from the model's repository.
    """
    from evomoe.training.parameters import describe_parameters

    print(describe_parameters(model, moe, moe_layers, trust_remote_code))


def compose(
    out: NewFolder,
    text: str,
    vision: str,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> None:
    """Join a language model and a vision tower into a LLaVA; stage 0 of `evomoe train` then aligns its projector.

    Args:
        out: folder to write; must not exist.
        text: folder or hub name of the language model.
        vision: folder or hub name of the vision tower (CLIP, SigLIP, ...).
        seed: draws the projector.
        trust_remote_code: run code from the models' repositories.
    """
    refuse_missing(text)
    refuse_missing(vision)
    refuse_existing(out)
    from evomoe.conversion.composing import compose_folder

    hide_loading_bars()
    print(compose_folder(text, vision, out, seed=seed, trust_remote_code=trust_remote_code))


def evaluate(
    checkpoint: ModelName,
    options: Annotated[EvaluationOptions, Flat] = EvaluationOptions(),  # noqa: B008
    benchmarks: tuple[str, ...] = ("easy-vqa",),
    dump_prompts: bool = False,
) -> None:
    """Score a model, dense or sparse, on benchmarks.

    Args:
        checkpoint: folder or hub name.
        options: how.
        benchmarks: names of benchmarks, see `evomoe list benchmarks`.
        dump_prompts: write every prompt as the model would see it, answer none, and load no weights.
    """
    refuse_missing(checkpoint)
    options.check(benchmarks)
    from evomoe.evaluation import evaluate, processes

    hide_loading_bars()
    if dump_prompts:
        print(evaluate.dump_prompts(checkpoint, benchmarks, options))
        return
    with when_interrupted(lambda: "The same command goes on where it stopped."):
        if text := evaluate.evaluate_checkpoint(checkpoint, benchmarks, options):
            print(text)
    processes.leave()


def score(
    benchmark: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BENCHMARK")],
    predictions: str,
    annotations: str,
    protocol: ProtocolName = "official",
    output: str | None = None,
    allow_missing: bool = False,
    any_version: bool = False,
) -> None:
    """Score answers that another program wrote: LLaVA's, EvalAI's, GQA's, MME's, MMBench's formats.

    Args:
        benchmark: its name, see `evomoe list benchmarks`.
        predictions: file with the answers, or MME's folder.
        annotations: the benchmark's folder, or the annotation file in it.
        protocol: whose rule.
        output: also write the result to this JSON file.
        allow_missing: count questions without an answer as wrong.
        any_version: also score data that no known version of the benchmark has.
    """
    for option, path in (("predictions", predictions), ("annotations", annotations)):
        if not Path(path).exists():
            raise OptionError(option, f"there is no {path}.")
    if output:
        refuse_existing(output, "file")
    from evomoe.evaluation.scoring import score_predictions

    print(score_predictions(benchmark, predictions, annotations, protocol, output, allow_missing, any_version))


def table(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TABLE")],
    scale: Literal["mini", "paper"] = "mini",
    rows: tuple[str, ...] = (),
    seeds: int = 0,
    jobs: int = 1,
    split: Literal["test", "validation"] = "test",
    limit: int = 0,
    study: str = "runs/study",
    results: str | None = None,
    dry_run: bool = False,
) -> None:
    """Run a table of the paper: its rows on the mini world, the published numbers beside them.

    Args:
        name: the paper's number of the table, or a study of our own, see `evomoe list tables`.
        scale: mini runs here; paper says which models, data, steps and GPU hours it took, and writes the recipes to launch.
        rows: run these rows only. The baseline that they are compared with is run too, unless the results have it.
        seeds: how many; 0 for as many as the table needs.
        jobs: how many pieces of work at once.
        split: test reports; validation is for choosing.
        limit: questions per benchmark; 0 asks all.
        study: folder of all runs: what is finished there is not run again, and tables share it.
        results: folder in which the numbers are kept, as table<NAME>.json, beside earlier ones of other rows and seeds.
        dry_run: say what would be run; write nothing.
    """
    from evomoe.paper.run_table import plan_table, run_table

    if scale == "paper":
        print(plan_table(name, rows, Path(study), dry_run))
        return
    with when_interrupted(lambda: "The same command goes on where it stopped."):
        kept = Path(results) if results else None
        say = partial(print, flush=True)
        print(run_table(name, rows, seeds, jobs, split, limit, Path(study), kept, dry_run, say))


def analyze(
    checkpoint: ModelName,
    options: Annotated[ProbeOptions, Flat] = ProbeOptions(data=tyro.MISSING),  # noqa: B008
    output: str | None = None,
    stage1: str | None = None,
) -> None:
    """Measure the experts and routers of a sparse model on some records: numbers.json, report.md, pictures.

    Args:
        checkpoint: folder or hub name of the sparse model.
        options: what it is measured on.
        output: folder for the results; runs/analyze/NAME unless named, NAME from the checkpoint's path.
        stage1: the dense model that Stage II began with, for the experts' task vectors; found by itself in a run's folder.
    """
    refuse_missing(checkpoint)
    options.check()
    if stage1 is not None:
        refuse_missing(stage1)
    from evomoe.analysis import analyze as command

    hide_loading_bars()
    print(command.analyze(checkpoint, options, output, stage1))


def plot(
    figure: tyro.conf.Positional[FigureName],
    checkpoint: ModelName,
    options: Annotated[FigureOptions, Flat] = FigureOptions(),  # noqa: B008
) -> None:
    """Draw a figure of a sparse model: 1a scores under shuffled routers, 1b router logits, 5 expert load, slots experts per token.

    Args:
        figure: the paper's number, or slots: how many experts each patch of a picture and each word of a question gets.
        checkpoint: folder or hub name of the sparse model.
        options: what it is drawn of.
    """
    if options.scores is None:
        refuse_missing(checkpoint)
    options.check_figure(figure)
    checkpoints = options.checkpoints(checkpoint)
    from importlib import import_module

    hide_loading_bars()
    options = replace(options, output=str(results_folder("plot", checkpoint, options.output or None)))
    print(import_module(FIGURES[figure]).draw(checkpoints, options))


def list_names(
    what: tyro.conf.Positional[TableName],
) -> None:
    """List what an option can name.

    Args:
        what: the table.
    """
    from evomoe.cli.listing import describe_table

    print(describe_table(what))


def doctor() -> None:
    """Print versions, devices, extras and folders, and what is wrong with them: what a bug report needs."""
    from evomoe.cli.doctor import examine

    found = examine()
    print("\n".join(found.lines))
    if found.wrong:
        raise ValueError("\n".join(["wrong here:", *(f"  {sentence}." for sentence in found.wrong)]))
    print("Nothing is wrong.")
