"""A router of one's own, registered from outside the package, trained a few steps on a tiny random model.

Run it with ``python examples/custom_router.py``. docs/extending.md goes through it line by line.
"""

import logging
import math
import tempfile
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from evomoe import upcycle
from evomoe.model.modality import Modality
from evomoe.model.routers import ROUTERS, Router
from evomoe.model.sparse_model import SparseModel
from evomoe.recipe.row_options import RouterOptions
from evomoe.support.errors import OptionError
from evomoe.training.trainable import set_trainable

IMAGE_TOKEN, WORDS = 99, 90


@dataclass(frozen=True)
class CosineOptions(RouterOptions):
    """How sure the router is at the start.

    Attributes:
        scale: where the scales of both modalities start; the larger, the surer.
    """

    scale: float = 5.0

    def check(self, num_experts: int) -> None:
        if self.scale <= 0:
            raise OptionError("scale", f"{self.scale:g} must be positive.")


class CosineRouter(Router[CosineOptions]):
    """logits = scale of the modality * cosine of the token and a learned direction per expert."""

    Options = CosineOptions

    def __init__(self, hidden_size: int, num_experts: int, **options) -> None:
        super().__init__(hidden_size, num_experts, **options)
        self.directions = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.log_scale = nn.Parameter(torch.empty(2))  # text, image
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.directions)
        nn.init.constant_(self.log_scale, math.log(self.options.scale))

    def forward(self, x_TD: Tensor, modality: Modality) -> Tensor:
        cosine_TE = F.normalize(x_TD, dim=-1) @ F.normalize(self.directions.float(), dim=-1).T
        scale_T = self.log_scale.float().exp()[modality.is_image_T.long()]
        return scale_T.unsqueeze(-1) * cosine_TE


ROUTERS["cosine"] = CosineRouter


def make_dense() -> LlavaForConditionalGeneration:
    """A LLaVA of 4 layers with random weights, small enough for a test."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8),
            text_config=LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=100, bos_token_id=1, eos_token_id=2),
            image_token_index=IMAGE_TOKEN,
        )
    )


def make_batch(rows: int = 8, words: int = 6) -> dict[str, Tensor]:
    """Random pictures, each followed by random words that the model has to learn by heart."""
    picture, text = torch.full((rows, 4), IMAGE_TOKEN), torch.randint(3, WORDS, (rows, words))
    labels = torch.cat([torch.full_like(picture, -100), text], 1)
    return {"input_ids": torch.cat([picture, text], 1), "labels": labels, "pixel_values": torch.randn(rows, 3, 16, 16)}


def train_a_little(steps: int = 30) -> tuple[SparseModel, list[float]]:
    """Trains the router alone, as Stage III does; returns the model and the loss of every step."""
    torch.manual_seed(0)
    model = upcycle(make_dense(), router="cosine", router_options={"scale": 3.0}, expert_init="noise", init_options={"std": 0.1})
    set_trainable(model, "router", model.config.moe.moe_layers)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    batch, losses = make_batch(), []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as folder:  # the checkpoint names the router, so loading needs this file imported
        model.save_pretrained(folder)
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
    same = torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    logging.info("loss %.3f -> %.3f in %d steps; saved and loaded alike: %s", losses[0], losses[-1], steps, same)
    return model, losses


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train_a_little()
