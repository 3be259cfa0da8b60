"""The model that lmms-eval asks: any image-text-to-text model, dense or sparse, batched, padded on the left.

lmms-eval is imported here, so nothing of evomoe imports this module.
"""

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyrefly: ignore[missing-import]: it is there when it calls us
from PIL import Image
from tqdm import tqdm

from evomoe.data.images import open_rgb
from evomoe.data.records import IMAGE_MARK, Turn
from evomoe.evaluation.generation import Answerer, Asked, Prompts
from evomoe.evaluation.processes import device_of, this_process
from evomoe.model.loading import load_model, load_processor
from evomoe.recipe.options import ImageAspect
from evomoe.recipe.run_folder import template_options_of
from evomoe.support.device import moved, prepare

logger = logging.getLogger(__name__)

_GENERATION = {"do_sample", "num_beams", "temperature", "top_p", "top_k", "repetition_penalty"}
_NOT_FOR_US = {"until", "max_new_tokens", "image_aspect_ratio"}
_WINDOW = 8  # batches whose pictures are in memory at once, and among which questions of similar length are put together


@dataclass(frozen=True)
class MemoryPicture:
    """A picture that lmms-eval has decoded."""

    image: Image.Image = field(repr=False)
    key: str

    @classmethod
    def of(cls, image: Image.Image) -> "MemoryPicture":
        rgb = open_rgb(image)  # the bytes of other modes can be equal though the pictures differ
        return cls(rgb, hashlib.md5(repr(rgb.size).encode() + rgb.tobytes(), usedforsecurity=False).hexdigest())

    def open(self) -> Image.Image:
        return self.image

    def fingerprint(self) -> str:
        return self.key


class _EvoMoE(lmms):
    """Loads a model and answers lmms-eval's requests.

    Args:
        pretrained: folder or hub name, dense or sparse.
        device: such as "cuda:0" or "cpu"; under a launcher, each process takes its own.
        batch_size: conversations per batch.
        max_batch_size: taken, because lmms-eval may give it; not used.
        dtype: "auto", "float32", "bfloat16" or "float16".
        image_aspect: "auto", "pad" or "keep", as in ``Prompts``.
        trust_remote_code: run code from the model's repository.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        dtype: str = "auto",
        image_aspect: ImageAspect = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        state = this_process()
        self._device = torch.device(device) if device and state.num_processes == 1 else device_of(state)
        prepare(self._device)
        self._model = moved(load_model(pretrained, dtype, trust_remote_code), self._device).eval()
        self.processor = load_processor(pretrained, trust_remote_code)
        self.batch_size, self.image_aspect = int(batch_size), image_aspect
        self._template_options = template_options_of(pretrained)
        self._rank, self._world_size = state.process_index, state.num_processes

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def model(self) -> Any:
        return self._model

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests; an error in one is raised, never an empty answer."""
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault(json.dumps(self._parts(request)[1], sort_keys=True, default=str), []).append(position)
        with tqdm(total=len(requests), desc="evomoe", unit="question", disable=self.rank != 0) as bar:
            for positions in groups.values():
                window = _WINDOW * self.batch_size
                for start in range(0, len(positions), window):
                    some = positions[start : start + window]
                    for position, answer in zip(some, self._answers([requests[i] for i in some]), strict=True):
                        answers[position] = answer
                    bar.update(len(some))
        return answers

    def _answers(self, requests: Sequence[Any]) -> list[str]:
        settings = dict(self._parts(requests[0])[1])
        until = settings.get("until") or []
        asked = [self._parts(request)[0]() for request in requests]
        prompts = Prompts(asked, self.processor, self.batch_size, self.image_aspect, template_options=self._template_options)
        answerer = Answerer(self._model, int(settings.get("max_new_tokens", 1024)), **_sampling(settings))
        answers: dict[int, str] = {}
        for some in answerer.answer(prompts, label=None):
            answers |= some
        return [_cut(answers[i], [until] if isinstance(until, str) else until) for i in range(len(requests))]

    @abstractmethod
    def _parts(self, request: Any) -> tuple[Any, dict[str, Any]]:
        """A function that makes the conversation, and the settings of generation."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("evomoe answers tasks that generate text; this one compares likelihoods of given answers.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("evomoe answers tasks of one round; this one goes on talking with the model.")


class EvoMoEChat(_EvoMoE):
    """Takes lmms-eval's messages: the default."""

    is_simple = False

    def _parts(self, request: Any) -> tuple[Any, dict[str, Any]]:
        _, doc_to_messages, settings, doc_id, task, split = request.args

        def make() -> Asked:
            where = f"{task}, {split}, document {doc_id}"
            return _of_messages(where, doc_to_messages(self.task_dict[task][split][doc_id]))

        return make, settings


class EvoMoESimple(_EvoMoE):
    """Takes a text and its pictures, which are put before it: with ``--force_simple``."""

    is_simple = True

    def _parts(self, request: Any) -> tuple[Any, dict[str, Any]]:
        context, settings, doc_to_visual, doc_id, task, split = request.args

        def make() -> Asked:
            images = [image for image in doc_to_visual(self.task_dict[task][split][doc_id]) or [] if image is not None]
            content = [*({"type": "image", "url": image} for image in images), {"type": "text", "text": context}]
            return _of_messages(f"{task}, {split}, document {doc_id}", [{"role": "user", "content": content}])

        return make, settings


def _of_messages(where: str, messages: Sequence[dict[str, Any]]) -> Asked:
    turns, pictures = [], []
    for message in messages:
        parts = message["content"]
        texts = []
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "image" and isinstance(part["url"], Image.Image):
                pictures.append(MemoryPicture.of(part["url"]))
                texts.append(IMAGE_MARK + "\n")
            elif part["type"] == "text":
                texts.append(part["text"])
            else:
                raise ValueError(f"{where}: evomoe takes texts and pictures, not {part['type']}.")
        turns.append(Turn(message["role"], "".join(texts)))
    return Asked(where, tuple(turns), tuple(pictures))


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """What the task says of generation: temperature 0 is greedy, whatever else it says."""
    for name in sorted(set(settings) - _GENERATION - _NOT_FOR_US):
        logger.warning("the task's generation setting %s=%r is left out", name, settings[name])
    chosen = {name: value for name, value in settings.items() if name in _GENERATION and value is not None}
    if not chosen.get("temperature"):
        return {"num_beams": chosen.get("num_beams", 1)}
    return {"do_sample": True} | chosen


def _cut(answer: str, until: Sequence[str]) -> str:
    """The answer up to the first of the task's stop strings."""
    ends = [position for stop in until if stop and (position := answer.find(stop)) >= 0]
    return answer[: min(ends)] if ends else answer
