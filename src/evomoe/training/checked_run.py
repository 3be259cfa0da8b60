"""A recipe that was checked against its model, before weights are loaded or anything is written: made once, handed on."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.modeling_utils import PreTrainedModel

from evomoe.conversion.expert_init import INITS, config_fields, option_from_stage2
from evomoe.data.allowed_tokens import allow_in_texts
from evomoe.data.chat_template import ChatTemplate
from evomoe.data.conversations import ConversationDataset
from evomoe.data.mix import MixedRecords
from evomoe.data.records import Record, Records, load_records
from evomoe.data.shards import open_shards
from evomoe.data.sources import open_sources
from evomoe.data.stream import StreamSource
from evomoe.data.streamed import StreamedDataset
from evomoe.model.configuration import EvoMoEConfig, MoEConfig
from evomoe.model.generation_settings import check_usable, load_settings
from evomoe.model.loading import empty_model, empty_models, load_config, load_model, load_processor, takes_pictures
from evomoe.model.possible import making
from evomoe.model.routers import ROUTERS
from evomoe.model.routers.checked_logits import try_router
from evomoe.model.routing import GATES
from evomoe.model.sparse_model import SparseModel, is_sparse
from evomoe.model.structure import decoder_layers, ffn_names, text_config
from evomoe.recipe.data_mix import DataSource
from evomoe.recipe.options import MoEOptions
from evomoe.recipe.placement import moe_layers, parse_placement
from evomoe.recipe.recipe import Recipe
from evomoe.recipe.run_folder import Resume, RunFolder
from evomoe.support.errors import OptionError, foreign, within
from evomoe.support.files import DiskError, naming
from evomoe.support.needs import needs_of
from evomoe.support.processes import check_processes
from evomoe.support.processor import Processor
from evomoe.support.text import counted, shortened
from evomoe.training.arguments import check_shared_out, trainer_options, training_arguments
from evomoe.training.evolution import check_rule
from evomoe.training.lora import Adapters
from evomoe.training.record_order import ORDERS, planned_steps, steps_per_pass, taken_records
from evomoe.training.trainable import set_trainable
from evomoe.training.tried_arguments import steps_between, try_arguments
from evomoe.training.zero3 import load_whole

_MANY_RECORDS = 10**9
"""As many as no data have, as long as they are not counted: what is wrong then is wrong with fewer."""


@dataclass(frozen=True)
class CheckedRun:
    """What a run knows before it begins.

    Attributes:
        recipe: the run; if it goes on with a sparse model, with that model's own mixture.
        dense, sparse: the model that it starts from and the one that Stage III trains, without weights.
        processor: of the model; of a text-only one its tokenizer.
    """

    recipe: Recipe
    dense: PreTrainedModel
    sparse: SparseModel
    processor: Processor

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.recipe.output)

    @property
    def moe(self) -> MoEConfig:
        """The mixture that the run makes or goes on with."""
        return self.sparse.config.moe

    @property
    def starts_sparse(self) -> bool:
        """Whether the run goes on with a model that is an EvoMoE already."""
        return self.sparse is self.dense

    def model_of(self, stage: int) -> PreTrainedModel:
        """The model that a stage trains, without weights."""
        return self.sparse if stage == 3 else self.dense

    def prepare(self, stage: int, model: PreTrainedModel) -> Adapters | None:
        """Lets train what a stage trains of its model, and freezes the rest.

        Returns:
            The adapters that train in the place of weights, if the stage has any.
        """
        settings = self.recipe.stage(stage)
        set_trainable(model, settings.train, self.moe.moe_layers)
        return Adapters(model, settings.lora, settings.lora_alpha) if settings.lora else None

    def prepared(self, stage: int) -> PreTrainedModel:
        """The model that a stage trains, without weights, as it trains it."""
        model = copy.deepcopy(self.model_of(stage))
        self.prepare(stage, model)
        return model

    def warnings(self, stage: int, dataset: ConversationDataset) -> list[str]:
        """What is odd about a stage's data, though it can be trained on."""
        return [*filter(None, (self._too_long(dataset), self._too_few(stage, dataset), *self._never(stage, dataset)))]

    def check_data(self, datasets: Mapping[int, ConversationDataset]) -> None:
        """Raises OptionError if TrainingArguments do not fit to the number of steps that the data give a stage."""
        for stage, dataset in datasets.items():
            count = taken_records(self.recipe, stage, dataset.per_pass) if self.recipe.streaming else dataset.per_pass
            _check_training_arguments(self.recipe, stage, self.model_of(stage), count)

    def _too_few(self, stage: int, dataset: ConversationDataset) -> str:
        settings, count = self.recipe.stage(stage), dataset.per_pass
        in_a_step = settings.batch_size * settings.accumulation
        if in_a_step <= count or self.recipe.streaming:
            return ""
        return (
            f"Stage {stage}: a step takes {in_a_step} records, more than the {count} there are; smaller: `stage{stage}.batch_size`, "
            f"`stage{stage}.accumulation`."
        )

    def _never(self, stage: int, dataset: ConversationDataset) -> list[str]:
        """What the user chose of saving and logging, if it never happens on the way."""
        given, count = trainer_options(self.recipe, stage), dataset.per_pass
        made = training_arguments(self.recipe, stage, self.folder.stage(stage), count)
        steps = planned_steps(self.recipe, stage, count)
        per_pass = steps if self.recipe.streaming else steps_per_pass(self.recipe, stage, count)
        lost = {
            "save": "writes no checkpoint on its way: if it is killed, it begins anew",
            "logging": "logs no loss on its way: its report has none",
        }
        found = []
        for what, lacks in lost.items():
            chosen = [f"{name}={given[name]}" for name in (f"{what}_strategy", f"{what}_steps") if name in given]
            if chosen and steps_between(made, what, steps, per_pass) >= steps:
                found.append(f"Stage {stage} takes {counted(steps, 'step')}, and with {' '.join(chosen)} it {lacks}.")
        return found

    def _too_long(self, dataset: ConversationDataset) -> str:
        positions = getattr(text_config(self.dense.config), "max_position_embeddings", None)
        longest = max(dataset.lengths(), default=0)
        if not positions or longest <= positions:
            return ""
        return (
            f"The longest record has {longest:,} tokens; the model knows {positions:,} positions (max_position_embeddings). Give "
            f"`max_length={positions}`, or drop such records."
        )

    def load(self, source: Path | str) -> PreTrainedModel:
        """Loads a model of the run, whole, on each process."""
        load_whole()
        return load_model(source, self.recipe.dtype, self.recipe.trust_remote_code)


def check_run(recipe: Recipe, resume: Resume = False) -> CheckedRun:
    """Refuses what a later stage would refuse.

    Raises:
        OptionError: an option is wrong, or the output folder may not be used.
        ValueError: the model cannot be used; the message says why.
    """
    check_processes()
    config = load_config(recipe.model, recipe.trust_remote_code)
    if isinstance(config, EvoMoEConfig):
        recipe = _with_its_mixture(recipe, config)
    RunFolder(recipe.output).check(recipe, resume)
    if isinstance(config, EvoMoEConfig):
        dense = sparse = empty_model(config)
        assert is_sparse(sparse)
    else:
        made_by = config_fields(recipe.expert_init, recipe.moe.num_experts)
        recipe.check_expert_init(option_from_stage2(recipe.expert_init))
        dense, sparse = empty_models(config, recipe.placement(), **made_by, **asdict(recipe.moe))
    _check_gradient(recipe)
    _check_router(sparse.config.moe, text_config(sparse.config).hidden_size)
    if 2 in recipe.stages:
        check_rule(recipe.evolution)
    if 3 in recipe.stages and sparse is not dense:
        _check_init_options(recipe, dense, sparse.config.moe)
    for stage in recipe.stages:
        _check_training_arguments(recipe, stage, sparse if stage == 3 else dense)
        _check_trained_parts(recipe, stage, sparse if stage == 3 else dense, sparse.config.moe)
        _check_adapters(recipe, stage, sparse if stage == 3 else dense)
    processor = load_processor(recipe.model, recipe.trust_remote_code)
    with making(recipe.model, "its processor cannot be used"):
        ChatTemplate(processor, recipe.template_options)
    if recipe.allow_special_tokens:
        processor = allow_in_texts(processor, recipe.allow_special_tokens)
    _check_savable(recipe.model, {"configuration": dense.config, "mixture": sparse.config, "processor": processor})
    return CheckedRun(recipe, dense, sparse, processor)


def load_data(recipe: Recipe, processor: Processor, keep: bool = False) -> dict[int, ConversationDataset]:
    """The data of each stage, every record checked but for its pictures' pixels; what stages share is read and checked once.

    Of a stream, the first records of each source are.

    Args:
        processor: of the recipe's model.
        keep: hold what becomes of each record in memory, for several runs in turn.

    Raises:
        ValueError: data cannot be opened, or have bad records that the recipe does not let pass.
    """

    def check(source: DataSource) -> Records:
        return load_records(
            opened[source.name], source.image_root, recipe.on_bad_record, recipe.max_pixels, recipe.check_pictures, recipe.workers
        )

    def load(mix: tuple[DataSource, ...]) -> ConversationDataset:
        records: Sequence[Record] = checked[mix[0].place]
        if len(mix) > 1 or mix[0].weight != 1:
            records = MixedRecords([checked[source.place] for source in mix], [source.weight for source in mix])
        options: Any = (
            records, processor, recipe.max_length, recipe.on_bad_record, recipe.image_aspect, keep, recipe.template_options,
            recipe.workers, recipe.video_frames,
        )  # fmt: skip
        if recipe.streaming:
            streams = [StreamSource(source.name, shards[source.name], source.weight, source.image_root) for source in mix]
            dataset = StreamedDataset(streams, *options, max_pixels=recipe.max_pixels, check_pictures=recipe.check_pictures)
        else:
            dataset = ConversationDataset(*options)
        dataset.check()
        return dataset

    mixes = {stage: recipe.sources_of(stage) for stage in recipe.stages}
    sources = {source.place: source for mix in mixes.values() for source in mix}
    names = [*dict.fromkeys(source.name for source in sources.values())]
    shards = {name: open_shards(name) for name in names if recipe.streaming}
    # All, before the first is checked.
    opened = {name: StreamSource(name, shards[name]).head() for name in names} if recipe.streaming else open_sources(names)
    checked = {key: check(source) for key, source in sources.items()}
    loaded = {mix: load(mix) for mix in dict.fromkeys(mixes.values())}
    return {stage: loaded[mix] for stage, mix in mixes.items()}


def contradictions(config: EvoMoEConfig, options: MoEOptions, placement: str) -> list[str]:
    """The options that say something else than an EvoMoE's own configuration does; defaults say nothing."""
    default, own = MoEOptions(), config.moe
    given = {name: value for name, value in vars(options).items() if name not in options.of_training()}
    wrong = [name for name, value in given.items() if value not in (getattr(default, name), getattr(own, name))]
    layers = moe_layers(parse_placement(placement), config.get_text_config(decoder=True).num_hidden_layers)
    if placement != "alternating" and layers != own.moe_layers:
        wrong.append("moe_layers")
    return wrong


def _with_its_mixture(recipe: Recipe, config: EvoMoEConfig) -> Recipe:
    """The recipe with the mixture of the EvoMoE that it starts from, which Stage III trains further as it is.

    Raises:
        OptionError: another stage is asked for.
        ValueError: another mixture is asked for; the message names the options.
    """
    if recipe.stages != (3,):
        raise OptionError("stages", f"{recipe.model} is an EvoMoE model already; Stage III alone trains it further: `stages=3`.")
    own, wrong = config.moe, contradictions(config, recipe.moe, recipe.moe_layers)
    if recipe.expert_init not in (Recipe.expert_init, own.expert_init):
        wrong.append("expert_init")
    if recipe.init_options:
        wrong.append("init_options")
    if wrong:
        named = ", ".join(f"`{name}`" for name in wrong)
        raise ValueError(f"{recipe.model} is an EvoMoE model already and is trained as it is; leave out {named}.")
    moe = MoEOptions(**{field.name: getattr(own, field.name) for field in fields(MoEOptions)} | recipe.moe.of_training())
    return recipe.but(moe=moe, expert_init=own.expert_init, moe_layers=",".join(map(str, own.moe_layers)))


def _check_gradient(recipe: Recipe) -> None:
    """Raises OptionError if only the router trains, and its gate leaves it no gradient."""
    one_expert = recipe.moe.num_experts_per_tok == 1 and recipe.stage3.train == "router"
    of_all = recipe.moe.router_gradient == "all"
    if 3 in recipe.stages and one_expert and not of_all and needs_of(GATES[recipe.moe.gate]):
        raise OptionError(
            "gate",
            f"'{recipe.moe.gate}' with one expert per token multiplies by 1: the router, which alone trains in Stage III, would get "
            "no gradient from the language loss. Choose `router_gradient=all`, `gate=straight_through`, `gate=probability`, or `num_experts_per_tok=2`.",
        )


def _check_router(moe: MoEConfig, hidden_size: int) -> None:
    """Raises OptionError if a router that is not evomoe's own fails on a few tokens; otherwise it would do so after Stage II."""
    kind = ROUTERS[moe.router]
    if not kind.__module__.startswith("evomoe."):
        with torch.random.fork_rng(devices=[]):
            try_router(kind(hidden_size, moe.num_experts, **moe.router_options), moe.num_experts_per_tok, moe.gate, moe.router)


def _check_training_arguments(recipe: Recipe, stage: int, model: PreTrainedModel, num_records: int = _MANY_RECORDS) -> None:
    """Raises OptionError if transformers refuses what ``trainer`` names: the run's, or the stage's if that is what is wrong."""

    def refusal(recipe: Recipe) -> Exception | None:
        try:
            made = training_arguments(recipe, stage, RunFolder(recipe.output).stage(stage), num_records)
            _check_loggers(made)
            _check_order(recipe, stage, made)
            try_arguments(trainer_options(recipe, stage), made, planned_steps(recipe, stage, num_records), num_records)
            check_shared_out(recipe, stage, made, model)
        except Exception as error:  # each argument has its own ways to fail
            return error
        return None

    if error := refusal(recipe):
        without = recipe.but(**{f"stage{stage}": replace(recipe.stage(stage), trainer={})})
        option = "trainer" if refusal(without) else f"stage{stage}.trainer"
        raise OptionError(option, f"TrainingArguments of stage {stage}: {shortened(foreign(error), 400)}") from error


def _check_order(recipe: Recipe, stage: int, arguments: TrainingArguments) -> None:
    if recipe.streaming:
        if "train_sampling_strategy" in trainer_options(recipe, stage):
            raise ValueError("train_sampling_strategy says nothing of a stream, which `streaming` shuffles. Leave it out.")
    elif arguments.train_sampling_strategy not in ORDERS and any(source.weight != 1 for source in recipe.sources_of(stage)):
        raise ValueError(
            f"train_sampling_strategy={arguments.train_sampling_strategy} takes each record once, whatever its weight. Choose one of "
            f"{', '.join(ORDERS)}, or leave out the weights."
        )


def _check_loggers(arguments: TrainingArguments) -> None:
    """The Trainer would look for their packages only when the data are read and the model is loaded."""
    for logger_class in get_reporting_integration_callbacks(arguments.report_to):
        try:
            logger_class()
        except RuntimeError as error:
            raise ValueError(f"report_to: {error}") from error


def _check_trained_parts(recipe: Recipe, stage: int, model: PreTrainedModel, moe: MoEConfig) -> None:
    what = recipe.stage(stage).train
    try:
        with within(f"stage{stage}"):
            set_trainable(model, what, moe.moe_layers)
    except OptionError as error:
        parts = what.split("+")
        if takes_pictures(model.config) or not {"projector", "vision"} & set(parts):
            raise
        others = " ".join(str(other) for other in recipe.stages if other != stage)
        of_text = "+".join(part for part in parts if part not in ("projector", "vision"))
        ways = []
        if others:
            ways.append(f"`stages={others}`")
        if of_text:
            ways.append(f"`stage{stage}.train={of_text}`")
        remedy = f": give {' or '.join(ways)}" if ways else ""
        raise OptionError(error.option, f"{error.message} It is text-only{remedy}.") from error


def _check_adapters(recipe: Recipe, stage: int, model: PreTrainedModel) -> None:
    """Raises OptionError if a stage cannot train adapters as it is asked to; what it trains is marked."""
    settings = recipe.stage(stage)
    if not settings.lora:
        return
    if shared := {"fsdp", "deepspeed"} & (recipe.trainer | settings.trainer).keys():
        raise OptionError(f"stage{stage}.lora", f"it was not tried with {shared.pop()}; leave one of them out. DDP is fine.")
    with within(f"stage{stage}"):
        Adapters(copy.deepcopy(model), settings.lora, settings.lora_alpha)


def _check_savable(model: str, parts: Mapping[str, Any]) -> None:
    """Raises ValueError if something that each checkpoint and the trained model hold, beside weights, cannot be saved."""
    settings = load_settings(model)
    check_usable(settings, parts["configuration"], model)
    parts = {**parts, "generation settings": settings}
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                with naming(folder, "What checkpoints hold is tried there: make room, or let TMPDIR name another folder."):
                    if part is not None:
                        part.save_pretrained(folder)
            except DiskError:  # no fault of the model's
                raise
            except Exception as error:
                raise ValueError(f"{model}: its {name} cannot be saved, so no checkpoint could be: {foreign(error)}") from error


def _check_init_options(recipe: Recipe, dense: PreTrainedModel, moe: MoEConfig) -> None:
    initialiser = INITS[recipe.expert_init]
    needed = initialiser.Options.from_stage2
    given = not needed or needed in recipe.init_options
    options = initialiser.read(recipe.init_options, recipe.expert_init, given)
    if given:
        names, layers = ffn_names(dense), decoder_layers(dense)
        ffns = {index: layers[index].get_submodule(names[index]) for index in moe.moe_layers}
        options.check_fits(ffns, moe.num_experts)
