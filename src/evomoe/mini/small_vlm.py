"""Small vision-language models from nothing: a SigLIP tower, a byte-level tokenizer and a Qwen2-style decoder, joined as a LLaVA.

Where no weights can be had, the demo's model and the mini study's base are built of these.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    f"{{%- for message in messages -%}}{{%- if message['role'] not in {ROLES} -%}}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ ': use system, user or assistant') -}}{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}{%- else -%}"
    "{{- raise_exception('unknown content type ' ~ part['type'] ~ ': use image or text') -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Architecture:
    """How large the model is: sizes in pixels, tokens or units."""

    image_size: int = 64
    patch_size: int = 16
    vision_width: int = 64
    vision_layers: int = 3
    hidden_size: int = 96
    ffn_size: int = 256
    layers: int = 8
    heads: int = 4
    max_positions: int = 1024
    vocabulary: int = 512
    initializer_range: float = 0.1


def build_tower(sizes: Architecture) -> transformers.SiglipVisionModel:
    """A tower with random weights."""
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=2 * sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            vision_use_head=False,
        )
    )


def build_processor(
    texts: Iterable[str], sizes: Architecture, numerals_apart: bool = False, phrases: Sequence[str] = ()
) -> transformers.LlavaProcessor:
    """A processor with a byte-level BPE tokenizer trained on ``texts``, so that any text can be encoded.

    Args:
        numerals_apart: a token for each numeral, for models that read numbers.
        phrases: frequent sentences that get a token each.
    """
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if numerals_apart:
        model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    else:
        model.pre_tokenizer = by_bytes
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=[PAD, END, IMAGE, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE, **{f"{role}_token": f"<|{role}|>" for role in ROLES}},
        model_max_length=sizes.max_positions,
        padding_side="left",
    )
    tokenizer.add_tokens([tokenizers.AddedToken(phrase, normalized=False) for phrase in phrases])
    return transformers.LlavaProcessor(
        image_processor=transformers.SiglipImageProcessorPil(size={"height": sizes.image_size, "width": sizes.image_size}),
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def optimise(
    title: str,
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    steps: int,
    rate: float,
    warmup_steps: int = 100,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
) -> float:
    """Takes ``steps`` AdamW steps on the losses drawn, with linear warm-up and cosine decay; returns the seconds taken."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, min(warmup_steps, steps // 4), steps)
    start = time.perf_counter()
    for _ in (bar := tqdm(range(steps), desc=title, unit="step", mininterval=2.0)):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return time.perf_counter() - start


@torch.no_grad()
def scale_projector(model: transformers.LlavaForConditionalGeneration, pixels_NCHW: Tensor) -> None:
    """Scales the fresh projector so that image tokens enter the decoder at the size of its word embeddings.

    The tower's features are a hundred times larger than a fresh embedding. Left so, they drown what the first layers add
    to them, and comparing a word with a picture takes several times as many steps to learn.
    """
    projector, embeddings = model.model.multi_modal_projector, model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    features_NTD = model.model.vision_tower(pixels_NCHW, output_hidden_states=True).hidden_states[-1]
    projector.linear_1.weight /= projector.linear_1(features_NTD).std()
    projector.linear_2.weight *= embeddings.weight.std() / projector(features_NTD).std()


def build_vlm(
    tower: transformers.SiglipVisionModel, processor: transformers.LlavaProcessor, pixels_NCHW: Tensor, sizes: Architecture
) -> transformers.LlavaForConditionalGeneration:
    """Joins the trained tower, a fresh projector and a fresh Qwen2-style decoder; a few pictures set the projector's scale."""
    tokenizer = processor.tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text_config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.ffn_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.max_positions,
        initializer_range=sizes.initializer_range,
        tie_word_embeddings=True,
        **special,
    )
    config = transformers.LlavaConfig(
        vision_config=tower.config,
        text_config=text_config,
        image_token_index=processor.image_token_id,
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    config.update(special)
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    scale_projector(model, pixels_NCHW)
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=16, **special)
    return model
