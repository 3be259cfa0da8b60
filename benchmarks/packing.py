"""Training steps on real tokens: packed, with logits where labels are, against the Trainer's padded batches with all logits.

The model has SmolLM2-135M's shape; pictures are 196 tokens, and texts are as unlike in length as those of LLaVA's mix.
``python benchmarks/packing.py``
"""

from collections.abc import Iterator

import torch
from timing import Ratio, compare, machine
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from evomoe.data.conversations import Collator
from evomoe.data.labels import IGNORED
from evomoe.demo.journey import DENSE_MODEL
from evomoe.model.loading import load_processor
from evomoe.recipe.placement import moe_layers
from evomoe.support.device import best_device, moved, prepare
from evomoe.training.label_loss import loss_on_labels
from evomoe.training.packing import packed_inputs
from evomoe.training.trainable import set_trainable

DEVICE = best_device()
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
PICTURE, IMAGE_TOKEN = 196, 49151
TEXTS = {True: (30, 45, 60, 90, 140, 220), False: (80, 300)}
"""Tokens of text of the records with a picture, and of those without."""
LIMIT = 1 / 1.6


def model_of_its_shape() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, image_size=224, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=IMAGE_TOKEN + 1,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, tie_word_embeddings=True)
    return moved(LlavaForConditionalGeneration(config), DEVICE, DTYPE).train()


def records() -> list[dict[str, torch.Tensor]]:
    """Items as a ``ConversationDataset`` makes them: one text token in ten has a label."""
    items = []
    for seen, lengths in TEXTS.items():
        for length in lengths:
            ids = torch.cat([torch.full((PICTURE * seen,), IMAGE_TOKEN), torch.randint(0, 49000, (length,))])
            labels = ids.clone()
            labels[: -max(4, length // 10)] = IGNORED
            item = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            items.append(item | ({"pixel_values": torch.randn(1, 3, 224, 224)} if seen else {}))
    return items


def steps(rounds: int) -> Iterator[Ratio]:
    """Forward and backward pass of Stages I and II; the optimiser's step is the same for both."""
    model, items, processor = model_of_its_shape(), records(), load_processor(DENSE_MODEL)
    padded, packed = (
        {name: value.to(DEVICE, DTYPE if value.is_floating_point() else value.dtype) for name, value in collate(items).items()}
        for collate in (Collator(processor), Collator(processor, packing="rows"))
    )
    rows = " and ".join(
        f"{len(batch['input_ids'])} rows, {batch['attention_mask'].float().mean():.0%} real" for batch in (padded, packed)
    )
    print(f"padded and packed: {rows}")

    def ours() -> torch.Tensor:
        with loss_on_labels(model, packed["labels"]):
            loss = model(**packed_inputs(model, packed)).loss
        loss.backward()
        model.zero_grad()
        return loss.detach()

    def plain() -> torch.Tensor:
        loss = model(**padded).loss
        loss.backward()
        model.zero_grad()
        return loss.detach()

    for stage, train in (("I", "text+projector"), ("II", "ffn")):
        set_trainable(model, train, moe_layers("alternating", 30))
        torch.testing.assert_close(ours(), plain(), atol=1e-4 if DTYPE is torch.float32 else 3e-2, rtol=0)
        yield compare(f"Stage {stage}, SmolLM2-135M's shape, packed and labelled / padded", ours, plain, rounds, LIMIT)


def main() -> None:
    torch.manual_seed(0)
    prepare(DEVICE)
    print(f"{machine()}, {DTYPE}")
    for ratio in steps(3 if DEVICE.type == "cpu" else 30):
        print(f"{ratio}, {1 / ratio.value:.2f} times the tokens per second", flush=True)


if __name__ == "__main__":
    main()
