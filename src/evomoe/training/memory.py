"""What a stage needs of memory: it is trained for a step on tensors that have shapes and no contents. Loads no weights.

R rows, S tokens in each, T tokens in all that are not padding, V of them image tokens, D hidden.
"""

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments
from transformers.modeling_utils import PreTrainedModel

from evomoe.data.conversations import Collator, ConversationDataset
from evomoe.data.labels import IGNORED
from evomoe.model.forward_pass import ForwardPass, running
from evomoe.model.modality import Modality
from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import decoder_layers, image_token_ids, part_of
from evomoe.support import hf
from evomoe.training.arguments import live_bytes, shares_weights


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one device. Gradients grow while activations go, so that the peak is less than the sum.

    Attributes:
        weights: of the whole model.
        gradients, optimizer: of what trains.
        evolved: the experts that evolve in Stage II; 0 where they are kept in the memory of the CPU.
        activations: what a micro-batch keeps from the forward to the backward pass.
        peak: the most at any one time.
        vision_left_out: whether the vision tower trains and what it keeps is not in ``activations``.
    """

    weights: int
    gradients: int
    optimizer: int
    evolved: int
    activations: int
    peak: int
    vision_left_out: bool = False

    def shared_out(self, arguments: TrainingArguments, processes: int, largest_layer: int) -> "StageMemory":
        """The memory of each of several processes.

        Args:
            arguments: which say how they share the model out: not at all (DDP), FSDP2, or DeepSpeed's ZeRO.
            processes: how many.
            largest_layer: bytes of the weights of one decoder layer, which FSDP gathers before it runs.
        """
        if processes == 1:
            return self
        whole = self.peak - self.weights - self.gradients - self.optimizer - self.evolved

        def part(size: int) -> int:
            return -(-size // processes)

        if shares_weights(arguments):
            own = replace(self, **{name: part(getattr(self, name)) for name in ("weights", "gradients", "optimizer", "evolved")})
            held = own.weights + own.gradients + own.optimizer + own.evolved
            gathered = 2 * largest_layer  # the next layer is gathered while one runs
            if not arguments.fsdp:
                gathered = min(self.weights, live_bytes(arguments))
            return replace(own, peak=held + whole + gathered)
        if arguments.deepspeed:
            own = replace(self, gradients=part(self.gradients), optimizer=part(self.optimizer))
            return replace(own, peak=own.weights + own.gradients + own.optimizer + own.evolved + whole)
        # DDP adds up gradients in buckets of its own.
        return replace(self, gradients=2 * self.gradients, peak=self.peak + self.gradients)


def largest_batch(dataset: ConversationDataset, size: int, packing: bool) -> dict[str, Tensor]:
    """The longest records of a dataset as the batch that training would make of them.

    Args:
        dataset: what a stage trains on.
        size: records in a batch.
        packing: several records share a row.
    """
    lengths = dataset.lengths()
    longest = sorted(range(len(lengths)), key=lambda number: -lengths[number])[:size]
    collate = Collator(dataset.processor, packing="rows" if packing else "")
    return collate([dataset[number] for number in longest])


def stage_memory(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    arguments: TrainingArguments,
    evolved: int = 0,
) -> StageMemory:
    """What one process needs to train a stage by itself.

    Args:
        model: of the stage, without weights, in the precision of its weights; what trains is marked. It stays as it is.
        batch: a micro-batch.
        arguments: of the stage.
        evolved: bytes that evolution holds on the device.

    Raises:
        Exception: the model or the optimizer looks at what tensors hold, or is none of torch's.
    """
    model, kinds = copy.deepcopy(model), _Kinds.of(model, batch)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model.to_empty(device="cpu").tie_weights()
        model.train()
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        parameters = [p for p in model.parameters() if p.requires_grad]
        inputs = {name: fake.from_tensor(value) for name, value in batch.items() if isinstance(value, Tensor)}
        sees = _sees(model, inputs)
        with _WithoutContents() as live:
            for tensor in (*model.parameters(), *model.buffers()):
                live.add(tensor)
            weights, activations = live.now, 0
            kept = _optimizer_with_states(parameters, arguments)
            states = {tensor.untyped_storage(): tensor.untyped_storage().nbytes() for tensor in kept}
            for _ in range(min(2, arguments.gradient_accumulation_steps)):
                before = live.now
                loss = _loss(model, inputs, kinds, sees, arguments)
                activations = live.now - before
                loss.backward()
                del loss
    gradients = sum(p.numel() * p.element_size() for p in parameters)
    mask = kinds.rows * kinds.length**2  # one byte each; it keeps padding and other records apart
    peak = live.peak + evolved + mask
    return StageMemory(weights, gradients, sum(states.values()), evolved, activations + mask, peak, sees is False)


def _optimizer_with_states(parameters: list[nn.Parameter], arguments: TrainingArguments) -> list[Tensor]:
    """What an optimizer keeps of parameters without contents; one that looks at contents is asked what it keeps of others."""
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)

    def states_of(parameters: list[nn.Parameter]) -> list[Tensor]:
        optimizer: Any = optimizer_class(parameters, **options)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]

    try:
        return states_of(parameters)
    except RuntimeError:
        for parameter in parameters:
            parameter.grad = None
    with _disable_current_modes():
        sample = nn.Parameter(torch.zeros(512, 512, dtype=parameters[0].dtype))
        share = sum(state.nbytes for state in states_of([sample])) / sample.numel()
    return [torch.empty(int(share * parameter.numel()), dtype=torch.uint8) for parameter in parameters]


def set_precision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives a model without weights the precision that loading would give it."""
    stays = getattr(model, hf.KEEP_IN_FLOAT32, None) or ()
    for name, module in model.named_modules():
        for own, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point() and not set(f"{name}.{own}".split(".")) & set(stays):
                tensor.data = tensor.data.to(dtype)


def largest_layer(model: PreTrainedModel) -> int:
    """Bytes of the weights of the largest decoder layer."""
    return max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in decoder_layers(model))


@dataclass(frozen=True)
class _Kinds:
    """What is counted of a batch before its contents are forgotten: rows, their length, labels, tokens, image tokens."""

    rows: int
    length: int
    labelled: int
    T: int
    V: int

    @classmethod
    def of(cls, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> "_Kinds":
        ids_RS, is_real_RS = batch["input_ids"], batch["attention_mask"] != 0
        is_image_RS = torch.isin(ids_RS, torch.tensor(image_token_ids(model.config), dtype=ids_RS.dtype)) & is_real_RS
        labelled = int((batch["labels"] != IGNORED).sum())
        rows, length = ids_RS.shape
        return cls(rows, length, labelled, int(is_real_RS.sum()), int(is_image_RS.sum()))

    @contextmanager
    def announced(self, model: PreTrainedModel) -> Iterator[None]:
        """Tells the MoE layers how many tokens of each kind there are; which ones changes no size."""
        if not is_sparse(model):
            yield
            return
        padded, is_image_T = self.rows * self.length > self.T, torch.arange(self.T) < self.V
        modality = Modality(is_image_T, torch.arange(self.T) if padded else None, (self.rows, self.length))
        vars(modality)["tokens"] = torch.arange(self.V), torch.arange(self.V, self.T)
        with running(ForwardPass(modality, recording=True)):
            yield


def _loss(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], kinds: _Kinds, sees: bool | None, arguments: TrainingArguments
) -> Tensor:
    """The language loss of a micro-batch."""
    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    with torch.autocast("cpu", half) if half else nullcontext(), kinds.announced(model):
        embeds_RSD = model.get_input_embeddings()(inputs["input_ids"])
        for tensor in _features(model, inputs) if sees else _trained_before_the_decoder(model):
            embeds_RSD = embeds_RSD + 0 * tensor.sum()
        hidden_RSD = model.get_decoder()(inputs_embeds=embeds_RSD, use_cache=False)[0]
        head: Any = model.get_output_embeddings()
        logits_NV = head(hidden_RSD.flatten(0, 1)[: kinds.labelled])
        return cross_entropy(logits_NV.float(), inputs["input_ids"].flatten()[: kinds.labelled], reduction="sum")


def _trained_before_the_decoder(model: PreTrainedModel) -> list[nn.Parameter]:
    """What trains of projector and vision tower."""
    parameters = dict(model.named_parameters())
    return [parameters[name] for name, part in part_of(model).items() if part != "text" and parameters[name].requires_grad]


def _features(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What the projector makes of the pictures."""
    pictures = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask", "labels")}
    found = tree_leaves(cast(Any, model).get_image_features(**pictures))
    return [tensor for tensor in found if isinstance(tensor, Tensor) and tensor.requires_grad]


def _sees(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> bool | None:
    """Whether the vision tower runs without a look at what its inputs hold; None if it does not train, or there is no picture."""
    parts, parameters = part_of(model), dict(model.named_parameters())
    if "pixel_values" not in inputs or not any(p.requires_grad and parts[name] == "vision" for name, p in parameters.items()):
        return None
    try:
        return bool(_features(model, inputs))
    except Exception:  # some towers count patches, others look for the edges of pictures: each fails in its own way
        return False


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive.

    Attributes:
        now: bytes of all that were added or made within the mode and are still alive.
        peak: the most that ``now`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor that was made before."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


class _WithoutContents(LiveBytes):
    """Also answers how many tokens each expert gets, which is data, as if all got as many."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: list[int] = []

    def __torch_dispatch__(self, func, types, args: Any = (), kwargs=None):
        if func is torch.ops.aten.scatter_add_.default:  # as ``occurrences`` counts
            experts, slots = args[0].numel() - 1, args[2].numel()
            self._counts = [slots // experts + (number < slots % experts) for number in range(experts)]
        if func is torch.ops.aten._local_scalar_dense.default and self._counts:
            return self._counts.pop(0)
        return super().__torch_dispatch__(func, types, args, kwargs)
