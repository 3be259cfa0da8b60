"""Trains the small dense vision-language model that ships with EvoMoE, from scratch, on easy-VQA's training split.

The recipe is a LLaVA's in miniature:

1. The vision tower is trained on its own, to name colour and shape of each picture as the training questions reveal them.
2. Stage I (warm-up), the tower frozen: projector and decoder learn captions, open questions and affirmative yes/no questions
   of all pictures, then also the negated yes/no questions of a few. The negated questions of the other pictures are left for
   Stages II and III, so that these see another mix than Stage I, as in the paper.

The last training pictures are a validation split. The test split is scored once, at the end, for the model card.

    python examples/make_demo_model.py --output my_dense_vlm
"""

import argparse
import importlib.metadata
import itertools
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from evomoe.data import easy_vqa
from evomoe.evaluation import BENCHMARKS, Item, Score, evaluate
from evomoe.evaluation.base import Prompts, score_table
from evomoe.files import new_folder, write_text
from evomoe.tables import markdown_table

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    f"{{%- if message['role'] not in {ROLES} -%}}"
    "{{- raise_exception('unknown role ' ~ message['role'] ~ ': use system, user or assistant') -}}{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}"
    "{%- else -%}{{- raise_exception('unknown content type ' ~ part['type'] ~ ': use image or text') -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes the model or its training: sizes in pixels, tokens or units, steps of the optimiser."""

    image_size: int = 64
    patch_size: int = 16
    vision_width: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    hidden_size: int = 96
    ffn_size: int = 256
    layers: int = 8
    heads: int = 4
    max_vocabulary: int = 512
    max_positions: int = 1024
    initializer_range: float = 0.1
    validation_pictures: int = 200
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    tower_steps: int = 4000
    tower_batch_size: int = 64
    tower_learning_rate: float = 3e-3
    stage1_steps: int = 800
    negated_pictures: int = 400
    negated_steps: int = 400
    stage1_batch_size: int = 32
    stage1_learning_rate: float = 1e-3


class Example(NamedTuple):
    """A question about a picture, given by its row among the pixels. ``type`` is easy-VQA's, or "caption"."""

    picture: int
    question: str
    answer: str
    type: str


class Split:
    """A split of easy-VQA: pixels as the processor makes them, questions, captions, and the words for colours and shapes."""

    def __init__(self, name: easy_vqa.Split, image_processor: transformers.BaseImageProcessor) -> None:
        asked = easy_vqa.questions(name)
        rows = {path: row for row, path in enumerate(dict.fromkeys(item.image_path for item in asked))}
        pictures = [Image.open(path).convert("RGB") for path in rows]
        self.pixels_NCHW: Tensor = image_processor(pictures, return_tensors="pt")["pixel_values"]
        self.questions = [Example(rows[item.image_path], item.question, item.answer, item.type) for item in asked]
        self.captions = [
            Example(rows[path], easy_vqa.CAPTION_REQUEST, caption, "caption")
            for path, caption in easy_vqa.captions(asked).items()
        ]
        self.names = [sorted({item.answer for item in asked if item.type == kind}) for kind in ("color", "shape")]

    def labels(self) -> Tensor:
        """Colour and shape of each picture from its caption: (N, 2), indices into ``names``, -100 without a caption."""
        labels_N2 = torch.full((len(self.pixels_NCHW), 2), -100)
        for example in self.captions:
            words = example.answer.split()[1:]
            labels_N2[example.picture] = torch.tensor([names.index(word) for names, word in zip(self.names, words, strict=True)])
        return labels_N2


def balance(examples: Sequence[Example]) -> list[Example]:
    """Repeats examples until yes and no, about colours and about shapes, are equally many.

    Nine colour questions in ten are answered "no": unbalanced, the model settles on "no" and learns no more. Captions and
    open questions, learnt within a hundred steps, get a third of the place of a yes/no stratum.
    """
    strata: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        key = (example.type,)
        if example.answer in ("yes", "no"):
            key = (example.type, example.answer, "color" if " shape" in example.question else "shape")
        strata.setdefault(key, []).append(example)
    largest = max(map(len, strata.values()))
    sizes = {key: largest if len(key) > 1 else largest // 3 for key in strata}
    return [example for key, stratum in strata.items() for example in itertools.islice(itertools.cycle(stratum), sizes[key])]


class Mover:
    """Moves the figure of a picture to a random place in the frame and mirrors half of the pictures.

    The background is one colour and no figure crosses the frame's edge, so rolling the pixels within the free room moves
    the figure without cutting it. No question asks for a position, so no answer changes.
    """

    def __init__(self, pixels_NCHW: Tensor) -> None:
        self.pixels_NCHW = pixels_NCHW
        background_NC11 = pixels_NCHW.flatten(2).median(-1).values[..., None, None]
        figure_NHW = (pixels_NCHW != background_NC11).any(1)
        occupied = (figure_NHW.any(2).int(), figure_NHW.any(1).int())  # rows (N, H), columns (N, W)
        self.room = [(line.argmax(1), line.flip(1).argmax(1)) for line in occupied]

    def __call__(self, rows_B: Tensor) -> Tensor:
        """Moved pictures (B, 3, H, W), drawn with torch's global generator."""
        sources = []
        for (before_N, after_N), size in zip(self.room, self.pixels_NCHW.shape[2:], strict=True):
            before_B, after_B = before_N[rows_B], after_N[rows_B]
            shift_B = (torch.rand(len(rows_B)) * (before_B + after_B + 1)).long() - before_B
            sources.append((torch.arange(size) - shift_B[:, None]) % size)
        lines_BH, columns_BW = sources
        columns_BW = torch.where(torch.rand(len(rows_B), 1) < 0.5, columns_BW.flip(1), columns_BW)
        moved_BHWC = self.pixels_NCHW[rows_B[:, None, None], :, lines_BH[:, :, None], columns_BW[:, None, :]]
        return moved_BHWC.permute(0, 3, 1, 2)


def optimise(
    title: str, parameters: list[nn.Parameter], losses: Iterator[Tensor], steps: int, rate: float, recipe: Recipe
) -> float:
    """Takes ``steps`` AdamW steps on the losses drawn, with linear warm-up and cosine decay; returns the seconds taken."""
    decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others], lr=rate)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, steps)
    start = time.perf_counter()
    for _ in (bar := tqdm(range(steps), desc=title, unit="step", mininterval=2.0)):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return time.perf_counter() - start


def train_vision_tower(split: Split, recipe: Recipe) -> tuple[transformers.SiglipVisionModel, float]:
    """Trains a SigLIP tower to name colour and shape by two linear heads on its mean feature; the heads are dropped.

    Returns:
        The tower and the seconds its training took.
    """
    tower = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=recipe.vision_width,
            intermediate_size=2 * recipe.vision_width,
            num_hidden_layers=recipe.vision_layers,
            num_attention_heads=recipe.vision_heads,
            image_size=recipe.image_size,
            patch_size=recipe.patch_size,
            vision_use_head=False,
        )
    )
    heads = nn.ModuleList(nn.Linear(recipe.vision_width, len(names)) for names in split.names)
    labels_N2, move = split.labels(), Mover(split.pixels_NCHW)
    shown = len(split.pixels_NCHW) - recipe.validation_pictures

    def losses() -> Iterator[Tensor]:
        while True:
            rows_B = torch.randint(shown, (recipe.tower_batch_size,))
            pooled_BD = tower(move(rows_B)).last_hidden_state.mean(1)
            named = zip(heads, labels_N2[rows_B].T, strict=True)
            yield torch.stack([functional.cross_entropy(head(pooled_BD), target_B) for head, target_B in named]).sum()

    parameters = [*tower.parameters(), *heads.parameters()]
    return tower, optimise("vision tower", parameters, losses(), recipe.tower_steps, recipe.tower_learning_rate, recipe)


def build_image_processor(recipe: Recipe) -> transformers.BaseImageProcessor:
    """SigLIP's image processor on Pillow: any picture to the tower's size, pixel values to [-1, 1]."""
    return transformers.SiglipImageProcessorPil(size={"height": recipe.image_size, "width": recipe.image_size})


def build_processor(texts: Sequence[str], recipe: Recipe) -> transformers.LlavaProcessor:
    """A processor with a byte-level BPE tokenizer trained on ``texts``, so that any text can be encoded."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=recipe.max_vocabulary,
        special_tokens=[PAD, END, IMAGE, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE, **{f"{role}_token": f"<|{role}|>" for role in ROLES}},
        model_max_length=recipe.max_positions,
        padding_side="left",
    )
    return transformers.LlavaProcessor(
        image_processor=build_image_processor(recipe),
        tokenizer=tokenizer,
        patch_size=recipe.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


@torch.no_grad()
def scale_projector(model: transformers.LlavaForConditionalGeneration, pixels_NCHW: Tensor) -> None:
    """Scales the fresh projector so that image tokens enter the decoder at the size of its word embeddings.

    The tower's features are a hundred times larger than a fresh embedding. Left so, they drown what the first layers add
    to them, and comparing a word with a picture takes several times as many steps to learn.
    """
    projector = model.model.multi_modal_projector
    features_NTD = model.model.vision_tower(pixels_NCHW, output_hidden_states=True).hidden_states[-1]
    projector.linear_1.weight /= projector.linear_1(features_NTD).std()
    projector.linear_2.weight *= model.get_input_embeddings().weight.std() / projector(features_NTD).std()


def build_vlm(
    tower: transformers.SiglipVisionModel, processor: transformers.LlavaProcessor, pixels_NCHW: Tensor, recipe: Recipe
) -> transformers.LlavaForConditionalGeneration:
    """Joins the trained tower, a fresh projector and a fresh Qwen2-style decoder; a few pictures set the projector's scale."""
    tokenizer = processor.tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text_config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.ffn_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        **special,
    )
    config = transformers.LlavaConfig(
        vision_config=tower.config,
        text_config=text_config,
        image_token_index=processor.image_token_id,
        image_seq_length=(recipe.image_size // recipe.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **special,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    scale_projector(model, pixels_NCHW)
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=16, **special)
    return model


def encode(processor: transformers.LlavaProcessor, image_tokens: int, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Right-padded ids, mask and labels (B, S); the loss counts answers and end tokens alone."""
    ids, labels = [], []
    for example in examples:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}
        text = processor.apply_chat_template([turn], add_generation_prompt=True)
        prompt = processor.tokenizer(text.replace(IMAGE, IMAGE * image_tokens))["input_ids"]
        answer = processor.tokenizer(example.answer + END)["input_ids"]
        ids.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([-100] * len(prompt) + answer))
    pad = processor.tokenizer.pad_token_id
    ids_BS = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
    labels_BS = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_ids": ids_BS, "attention_mask": (ids_BS != pad).long(), "labels": labels_BS}


def warm_up(
    model: transformers.LlavaForConditionalGeneration,
    processor: transformers.LlavaProcessor,
    pixels_NCHW: Tensor,
    lessons: Sequence[tuple[Sequence[Example], int]],
    recipe: Recipe,
) -> float:
    """Stage I: trains projector and decoder, the tower frozen, on each lesson's examples for its number of steps.

    Returns:
        The seconds the training took.
    """
    model.model.vision_tower.requires_grad_(False)
    move, image_tokens = Mover(pixels_NCHW), model.config.image_seq_length

    def losses() -> Iterator[Tensor]:
        for examples, steps in lessons:
            for _ in range(steps):
                chosen = [examples[row] for row in torch.randint(len(examples), (recipe.stage1_batch_size,)).tolist()]
                pixels_BCHW = move(torch.tensor([example.picture for example in chosen]))
                yield model(pixel_values=pixels_BCHW, **encode(processor, image_tokens, chosen)).loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = sum(steps for _, steps in lessons)
    return optimise("Stage I", trained, losses(), steps, recipe.stage1_learning_rate, recipe)


CARD = """---
license: apache-2.0
language: en
datasets: easy-vqa
pipeline_tag: image-text-to-text
library_name: transformers
---

# The dense model of `evomoe demo`

A LLaVA of about a million parameters (SigLIP tower, Qwen2 decoder), trained from scratch on the training split of easy-VQA
(PyPI `easy-vqa`, MIT) by `examples/make_demo_model.py`. It answers questions about one coloured shape in one word. It is the
start of the demo and of tests, and good for nothing else.

{scores}

The test split was scored once, after training. The validation split is the last {validation_pictures} training pictures, which
training did not see. In Stage I the model saw negated yes/no questions ("is there not a red shape?") of {negated_pictures}
pictures only.

{parameters}

{recipe}

{run}
"""


def render_card(model: nn.Module, recipe: Recipe, run: dict[str, str], scores: dict[str, Score]) -> str:
    """The model card. ``run`` maps facts about this run, such as seconds, to their values; ``scores`` is by split."""
    parts = {
        "vision tower (SigLIP)": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "decoder (Qwen2)": model.model.language_model,
        "all": model,
    }
    counts = [[name, f"{sum(p.numel() for p in part.parameters()):,}"] for name, part in parts.items()]
    versions = [[name, importlib.metadata.version(name)] for name in ("torch", "transformers", "tokenizers", "easy-vqa")]
    settings = [[name.replace("_", " "), str(value)] for name, value in asdict(recipe).items()]
    return CARD.format(
        scores="\n\n".join(score_table(f"easy-VQA, {name}", {"this model": score}) for name, score in scores.items()),
        parameters=markdown_table(["part", "parameters"], counts),
        recipe=markdown_table(["setting", "value"], settings),
        run=markdown_table(["this run", "value"], [*([k, v] for k, v in run.items()), *versions]),
        **asdict(recipe),
    )


def score(model: nn.Module, processor: transformers.LlavaProcessor, asked: Sequence[easy_vqa.Question]) -> Score:
    """Greedy answers to easy-VQA questions, by type."""
    items = [Item(question.image_path, question.question, question.answer, question.type) for question in asked]
    return evaluate(model, Prompts(items, processor), BENCHMARKS["easy-vqa"], "scoring")


def make(output: Path, seed: int, recipe: Recipe) -> None:
    """Runs the whole recipe and writes the model, its processor and its card into the new folder ``output``."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    with new_folder(output) as folder:
        split = Split("train", build_image_processor(recipe))
        tower, tower_seconds = train_vision_tower(split, recipe)
        texts = [text for e in (*split.questions, *split.captions) for text in (e.question, e.answer)]
        processor = build_processor(texts, recipe)
        model = build_vlm(tower, processor, split.pixels_NCHW[:256], recipe)
        shown = len(split.pixels_NCHW) - recipe.validation_pictures
        seen = [e for e in (*split.questions, *split.captions) if e.picture < shown]
        affirmative = [e for e in seen if e.type != "yes/no negated"]
        negated = [e for e in seen if e.type == "yes/no negated" and e.picture < recipe.negated_pictures]
        lessons = [(balance(affirmative), recipe.stage1_steps), (balance(affirmative + negated), recipe.negated_steps)]
        stage1_seconds = warm_up(model, processor, split.pixels_NCHW, lessons, recipe)
        asked = easy_vqa.questions("train")
        held_out = set(list(dict.fromkeys(question.image_path for question in asked))[shown:])
        scores = {
            "validation": score(model, processor, [question for question in asked if question.image_path in held_out]),
            "test": score(model, processor, easy_vqa.questions("test")),
        }
        run = {
            "seed": str(seed),
            "vision tower, seconds": f"{tower_seconds:.0f}",
            "Stage I, seconds": f"{stage1_seconds:.0f}",
            "Python": platform.python_version(),
        }
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_text(folder / "README.md", render_card(model, recipe, run, scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.output, arguments.seed, Recipe())


if __name__ == "__main__":
    main()
