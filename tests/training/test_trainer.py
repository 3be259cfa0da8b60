"""What the trainer logs: numbers by hand, and a metrics file that survives a kill."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import inputs_for, make_llava
from transformers import TrainerControl, TrainerState, TrainingArguments

from evomoe import upcycle
from evomoe.model.modality import Modality
from evomoe.model.routing import LayerRecord, Routing
from evomoe.support.errors import OptionError
from evomoe.training.callbacks import MetricsFile, RouterCallback
from evomoe.training.meter import RouterMeter
from evomoe.training.trainer import EvoMoETrainer


def record(index: list[list[int]], is_image: list[bool], E: int = 3) -> LayerRecord:
    index_TK, T = torch.tensor(index), len(index)
    modality = Modality(torch.tensor(is_image), None, (1, T))
    probs_TE = torch.full((T, E), 1 / E)
    return LayerRecord(
        Routing(probs_TE.log(), probs_TE, index_TK, torch.ones(index_TK.shape)),
        modality,
        torch.zeros(T, 2),
        [torch.nn.Identity()] * E,
    )


def test_the_meter_by_hand():
    meter = RouterMeter()
    meter.update({"aux_loss": {"balance": torch.tensor(1.0)}, "records": {0: record([[0], [0], [1]], [False, True, True])}})
    meter.update({"aux_loss": {"balance": torch.tensor(2.0)}, "records": {0: record([[0], [2]], [False, True])}})
    logs = meter.drain()
    assert logs.pop("aux/balance") == pytest.approx(1.5)
    shares = [0.6, 0.2, 0.2]
    assert logs.pop("largest_score") == pytest.approx(math.log(3))
    assert logs.pop("effective_experts") == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    assert logs == {
        "load/text/expert1": 1.0, "load/text/expert2": 0.0, "load/text/expert3": 0.0,
        "load/image/expert1": pytest.approx(1 / 3), "load/image/expert2": pytest.approx(1 / 3),
        "load/image/expert3": pytest.approx(1 / 3),
    }  # fmt: skip


def test_scores_that_have_become_large_are_told_once(caplog):
    meter = RouterMeter()
    for factor, told in ((1, 0), (-500, 1), (-900, 1)):
        as_it_was = record([[0], [1]], [False, True])
        routing = as_it_was.routing
        large = Routing(routing.logits_TE * factor, routing.probs_TE, routing.index_TK, routing.weight_TK)
        meter.update({"records": {0: replace(as_it_was, routing=large)}})
        assert meter.drain()["largest_score"] == pytest.approx(abs(factor) * math.log(3))
        assert caplog.text.count("The routers' scores have reached 549.3; beyond 100 they learn little.") == told


def test_the_meter_counts_slots_over_all_layers_and_skips_slots_without_an_expert():
    meter = RouterMeter()
    layers = {0: record([[0, 1], [0, 3]], [False, False]), 2: record([[2, 3], [2, 1]], [False, False])}
    meter.update({"records": layers})
    logs = meter.drain()
    assert [logs[f"load/text/expert{n}"] for n in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert logs["effective_experts"] == pytest.approx(3) and logs["load/image/expert1"] == 0
    assert logs["experts/text"] == 6 / 4 and "experts/image" not in logs  # of four tokens in all layers, and of none


def test_scores_that_are_not_finite_stop_training_before_the_step():
    meter, fine = RouterMeter(), record([[0], [2]], [False, False])
    broken = replace(fine, routing=replace(fine.routing, logits=torch.tensor([[0.0, math.nan, 0.0]] * 2)))
    callback = RouterCallback(meter)
    meter.update({"records": {0: fine, 2: fine}})
    callback.on_pre_optimizer_step(None, TrainerState(global_step=6), TrainerControl())
    meter.update({"records": {0: fine, 2: broken}})
    meter.update({"records": {0: fine, 2: fine}})  # another micro-batch of the same step
    with pytest.raises(ValueError, match="^Training stopped before step 8: the router of layer 2 has scores that are not finite"):
        callback.on_pre_optimizer_step(None, TrainerState(global_step=7), TrainerControl())
    callback.on_pre_optimizer_step(None, TrainerState(global_step=7), TrainerControl())


def test_a_score_that_hides_an_expert_is_no_fault():
    meter, fine = RouterMeter(), record([[0], [2]], [False, False])
    hidden = replace(fine, routing=replace(fine.routing, logits=torch.tensor([[0.0, -math.inf, 0.0]] * 2)))
    meter.update({"records": {0: hidden}})
    meter.check_finite(1)
    meter.update({"records": {0: replace(fine, routing=replace(fine.routing, logits=torch.full((2, 3), -math.inf)))}})
    with pytest.raises(ValueError, match="before step 1: the router of layer 0"):
        meter.check_finite(1)


def test_the_meter_names_virtual_experts():
    meter, made = RouterMeter(), record([[0], [2]], [False, False])
    meter.update({"records": {0: replace(made, experts=made.experts[:2])}})
    logs = meter.drain()
    assert logs["load/text/expert1"] == logs["load/text/virtual1"] == 0.5 and "load/text/expert3" not in logs
    assert logs["experts/text"] == 0.5 and logs["effective_experts"] == 1  # of the real ones


def test_the_meter_starts_anew_after_reading_and_is_silent_about_nothing():
    meter = RouterMeter()
    meter.update({"aux_loss": {"balance": torch.tensor(1.0)}, "records": {0: record([[0]], [True])}})
    meter.drain()
    assert meter.drain() == {}
    meter.update({"loss": torch.tensor(1.0)})
    assert meter.drain() == {}


def log(file: MetricsFile, step: int, **values) -> None:
    file.on_log(None, SimpleNamespace(global_step=step), None, logs=values)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_stage_drops_the_lines_it_is_about_to_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for stage, steps in (("warmup", (1, 2, 3)), ("evolution", (1, 2, 3, 4))):
        for step in steps:
            log(MetricsFile(path, stage), step, loss=step / 2)
    MetricsFile(path, "evolution").on_train_begin(None, SimpleNamespace(global_step=2), None)
    assert [(line["stage"], line["step"]) for line in lines(path)] == [
        ("warmup", 1), ("warmup", 2), ("warmup", 3), ("evolution", 1), ("evolution", 2),
    ]  # fmt: skip
    assert lines(path)[1] == {"stage": "warmup", "step": 2, "loss": 1.0}
    MetricsFile(path, "evolution").on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert {line["stage"] for line in lines(path)} == {"warmup"}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "half", ['{"stage": "evolution", "st', '{"stage": "evolution", "step": 3, "a": {"b": 1}', "\n", "\x00\x00}"]
)
def test_half_a_line_is_dropped(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, "evolution")
    log(file, 1, loss=1.0)
    log(file, 2, loss=2.0)
    with path.open("a") as stream:
        stream.write(half)
    file.on_train_begin(None, SimpleNamespace(global_step=2), None)
    assert [line["step"] for line in lines(path)] == [1, 2]
    log(file, 3, loss=3.0)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_a_first_run_has_no_file_to_mend(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl", "warmup").on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert list(tmp_path.iterdir()) == []


class Repeated(torch.utils.data.Dataset):
    """One batch, row by row, as often as asked for."""

    def __init__(self, batch: dict[str, torch.Tensor], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {name: tensor[i % len(tensor)] for name, tensor in self.batch.items()}


def trainer_for(model, tmp_path, accumulation: int = 1, **arguments) -> EvoMoETrainer:
    batch = inputs_for(model, (1, 1))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    options = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no", "learning_rate": 1e-3}
    settings = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, **options | arguments
    )
    data = Repeated(batch, 4 * accumulation)
    return EvoMoETrainer(model=model, args=settings, train_dataset=data, metrics=tmp_path / "metrics.jsonl", stage="routing")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_are_logged_as_the_model_gives_them(tmp_path, accumulation):
    torch.manual_seed(0)
    model = upcycle(make_llava(), aux_losses={"balance": 0.5, "local": 0.25}, expert_init="noise", init_options={"std": 0.1})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.moe_blocks.values():
        block.router.requires_grad_(True)
    trainer = trainer_for(model, tmp_path, accumulation, learning_rate=1e-12)
    batch = {name: torch.stack([trainer.train_dataset[i][name] for i in range(2)]) for name in trainer.train_dataset.batch}
    out = model.train()(**batch)
    trainer.train()
    first = lines(tmp_path / "metrics.jsonl")[0]
    assert first["stage"] == "routing" and first["step"] == 1
    assert first["loss"] == pytest.approx(out.loss.item(), rel=1e-3)
    assert first["aux/balance"] == pytest.approx(out.aux_loss["balance"].item(), rel=1e-3)
    assert first["aux/local"] == pytest.approx(out.aux_loss["local"].item(), rel=1e-3)


def test_a_dense_model_logs_no_router(tmp_path):
    torch.manual_seed(0)
    trainer_for(make_llava(), tmp_path).train()
    first = lines(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] > 0 and not any(name.startswith(("aux/", "load/", "effective", "distance/")) for name in first)


def test_two_trainers_share_no_state(tmp_path):
    """Two runs in one process: the second must not log what the first one counted."""
    first, second = (trainer_for(make_llava(), tmp_path / name) for name in "ab")
    assert first.meter is not second.meter and first.interrupt is not second.interrupt
    assert isinstance(first.state, TrainerState) and isinstance(first.control, TrainerControl)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("context", [None, "spawn"])
def test_a_batch_that_a_process_cannot_hand_over_ends_training(tmp_path, context):
    trainer = trainer_for(make_llava(), tmp_path, dataloader_num_workers=1, dataloader_multiprocessing_context=context)
    trainer.data_collator = not_to_be_handed_over
    with pytest.raises(OptionError, match="workers: .* ended before its time"):
        trainer.train()


def not_to_be_handed_over(rows: list) -> list:
    """A batch that no other process can be given, as when the memory that processes share is full."""
    return [lambda: None for _ in rows]


@pytest.mark.parametrize("skipped", [False, True])
def test_routers_hear_of_steps_that_happened(skipped):
    model = upcycle(
        make_llava(), router="anyexperts", num_experts=8, num_experts_per_tok=4, router_options={"bias_rate": 0.1}
    ).train()
    inputs = inputs_for("llava", (1, 0))
    model(**inputs, labels=inputs["input_ids"])
    optimizer = SimpleNamespace(step_was_skipped=skipped)
    RouterCallback(RouterMeter()).on_optimizer_step(None, None, None, model=model, optimizer=optimizer)
    assert all(bool(block.router.bias.value_N.any()) is not skipped for block in model.moe_blocks.values())


def test_training_ends_before_scores_that_are_not_finite_reach_the_weights(tmp_path):
    model = upcycle(make_llava(), router="linear", aux_losses={})
    trainer = trainer_for(model, tmp_path)
    block = model.moe_blocks[0]
    block.router.register_forward_hook(lambda module, inputs, logits_TE: logits_TE * math.nan)
    with pytest.raises(ValueError, match="^Training stopped before step 1: the router of layer 0"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
