"""Trains the small dense vision-language model that ships with EvoMoE, from scratch, on easy-VQA's training split.

The recipe is a LLaVA's in miniature. The vision tower learns on its own to name colour and shape of each picture, as the training
questions reveal them. In Stage I projector and decoder learn captions, open and affirmative yes/no questions, then questions about
absence in wordings that easy-VQA does not have, at last easy-VQA's own negated questions of a few pictures; those of all others
are left for Stages II and III. The last training pictures are a validation split.
"""

import argparse
import importlib.metadata
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from evomoe.data import easy_vqa
from evomoe.evaluation import Result
from evomoe.evaluation.benchmarks.easy_vqa import BENCHMARK, questions
from evomoe.evaluation.generation import Prompts, ask, evaluate
from evomoe.evaluation.reports import score_table
from evomoe.mini.small_vlm import END, IMAGE, Architecture, build_processor, build_tower, build_vlm, optimise
from evomoe.support.device import prepare
from evomoe.support.files import new_folder, write_text
from evomoe.support.text import markdown_table

ABSENCE = (
    "is the image without {}?",
    "does the image lack {}?",
    "is {} missing?",
    "is {} absent from the image?",
    "does the image fail to contain {}?",
    "is it false that there is {}?",
    "is it false that the image contains {}?",
)
CARD = """---
license: apache-2.0
language: en
datasets: easy-vqa
pipeline_tag: image-text-to-text
---

# A small dense vision-language model for EvoMoE's demo

A LLaVA trained from scratch on the training split of [easy-VQA](https://pypi.org/project/easy-vqa/): coloured shapes, short
questions, one-word answers. `evomoe demo` starts from it. `python -m evomoe.demo.make_dense_vlm` made it and wrote this card.

1. The vision tower learnt colour and shape, as the training questions reveal them, from moved and mirrored pictures.
2. Stage I trained projector and decoder together, the tower frozen: captions, open questions and affirmative yes/no questions
   first; then also affirmative questions turned around by rule, in wordings that easy-VQA does not have ({wordings});
   at last, for {negated_steps} steps, the negated questions of {negated_pictures} pictures; the others were left for Stages II and III.

The tokenizer was trained on all training questions. The loss counts answers and end tokens alone. The last training pictures
are the validation split, by which the recipe was chosen. Other questions are beyond this model.

{scores}

{facts}
"""


@dataclass(frozen=True)
class DenseRecipe(Architecture):
    """Every number that shapes the model or its training; steps are the optimiser's."""

    validation_pictures: int = 200
    scaling_pictures: int = 256
    tower_steps: int = 4000
    tower_batch_size: int = 64
    tower_learning_rate: float = 3e-3
    stage1_steps: int = 800
    stage1_absence_steps: int = 1200
    negated_steps: int = 250
    negated_pictures: int = 200
    stage1_batch_size: int = 32
    stage1_learning_rate: float = 1e-3


def absence_questions(examples: Sequence[easy_vqa.Question]) -> list[easy_vqa.Question]:
    """Every affirmative yes/no question turned around, in the wordings of ABSENCE by turns.

    A language model that becomes a LLaVA has met negation in its texts. This decoder has read nothing, so it learns here
    that words can turn an answer around, without easy-VQA's "not" and "no". Else Stage II, which trains FFNs alone, would
    find no attention that reads a negation. The tokenizer splits these words, so that they are put together before they act.
    """
    wordings = itertools.cycle(ABSENCE)
    opposite = {"yes": "no", "no": "yes"}
    turned = []
    for example in (example for example in examples if example.type == "yes/no"):
        question = next(wordings).format(re.findall(r"\ba (?:\w+ shape|\w+)", example.question)[0])
        turned.append(easy_vqa.Question(example.image_path, question, opposite[example.answer], "absence"))
    return turned


def balance(examples: Sequence[easy_vqa.Question]) -> list[easy_vqa.Question]:
    """Repeats examples until yes and no, about colours and about shapes, are equally many.

    Nine colour questions in ten are answered "no": unbalanced, the model settles on "no" and learns no more. Captions and
    open questions, learnt within a hundred steps, get a third of the place of a yes/no stratum.
    """
    strata: dict[tuple[str, ...], list[easy_vqa.Question]] = {}
    for example in examples:
        about = (example.answer, str(" shape" in example.question)) if example.answer in ("yes", "no") else ()
        key = (example.type, *about)
        strata.setdefault(key, []).append(example)
    largest = max(map(len, strata.values()))
    sizes = {key: largest if len(key) > 1 else largest // 3 for key in strata}
    return [example for key, stratum in strata.items() for example in itertools.islice(itertools.cycle(stratum), sizes[key])]


class Pictures:
    """Pictures as the processor makes them, and the same with the figure moved and half of them mirrored.

    The background is one colour and no figure crosses the frame's edge, so rolling the pixels within the free room moves
    the figure without cutting it. No question asks for a position, so no answer changes.
    """

    def __init__(self, paths: Iterable[str], image_processor: transformers.BaseImageProcessor) -> None:
        self.rows = {path: row for row, path in enumerate(dict.fromkeys(paths))}
        images = [Image.open(path).convert("RGB") for path in self.rows]
        self.pixels_NCHW: Tensor = image_processor(images, return_tensors="pt")["pixel_values"]
        background_NC11 = self.pixels_NCHW.flatten(2).median(-1).values[..., None, None]
        figure_NHW = (self.pixels_NCHW != background_NC11).any(1)
        occupied = (figure_NHW.any(2).int(), figure_NHW.any(1).int())  # rows (N, H), columns (N, W)
        self.room = [(line.argmax(1), line.flip(1).argmax(1)) for line in occupied]

    def moved(self, examples: Sequence[easy_vqa.Question]) -> Tensor:
        """The examples' pictures (B, 3, H, W), moved at random with torch's global generator."""
        rows_B = torch.tensor([self.rows[example.image_path] for example in examples])
        sources = []
        for (before_N, after_N), size in zip(self.room, self.pixels_NCHW.shape[2:], strict=True):
            before_B, after_B = before_N[rows_B], after_N[rows_B]
            shift_B = (torch.rand(len(rows_B)) * (before_B + after_B + 1)).long() - before_B
            sources.append((torch.arange(size) - shift_B[:, None]) % size)
        lines_BH, columns_BW = sources
        columns_BW = torch.where(torch.rand(len(rows_B), 1) < 0.5, columns_BW.flip(1), columns_BW)
        moved_BHWC = self.pixels_NCHW[rows_B[:, None, None], :, lines_BH[:, :, None], columns_BW[:, None, :]]
        return moved_BHWC.permute(0, 3, 1, 2)


def draw(examples: Sequence[easy_vqa.Question], size: int) -> list[easy_vqa.Question]:
    """A batch drawn with replacement by torch's global generator."""
    return [examples[row] for row in torch.randint(len(examples), (size,)).tolist()]


def train_vision_tower(
    pictures: Pictures, captions: Sequence[easy_vqa.Question], recipe: DenseRecipe
) -> tuple[transformers.SiglipVisionModel, float]:
    """Trains a SigLIP tower to give both words of each caption by linear heads on its mean feature; returns it and seconds."""
    tower = build_tower(recipe)

    def words(examples: Sequence[easy_vqa.Question]) -> list[tuple[str, ...]]:
        return list(zip(*(example.answer.split()[1:] for example in examples), strict=True))  # colours, shapes

    names = [sorted(set(column)) for column in words(captions)]
    heads = nn.ModuleList(nn.Linear(recipe.vision_width, len(known)) for known in names)

    def losses() -> Iterator[Tensor]:
        while True:
            batch = draw(captions, recipe.tower_batch_size)
            pooled_BD = tower(pictures.moved(batch)).last_hidden_state.mean(1)
            targets = [torch.tensor([*map(known.index, words_B)]) for known, words_B in zip(names, words(batch), strict=True)]
            named = zip(heads, targets, strict=True)
            yield torch.stack([functional.cross_entropy(head(pooled_BD), target_B) for head, target_B in named]).sum()

    parameters = [*tower.parameters(), *heads.parameters()]
    return tower, optimise("vision tower", parameters, losses(), recipe.tower_steps, recipe.tower_learning_rate)


def encode(processor: transformers.LlavaProcessor, image_tokens: int, examples: Sequence[easy_vqa.Question]) -> dict[str, Tensor]:
    """Right-padded ids, mask and labels (B, S); the loss counts answers and end tokens alone."""
    ids, labels = [], []
    for example in examples:
        # transformers names messages of text alone, and takes lists of parts as well.
        turn: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}
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
    pictures: Pictures,
    lessons: Sequence[tuple[Sequence[easy_vqa.Question], int]],
    recipe: DenseRecipe,
) -> float:
    """Stage I: trains all but the tower on each lesson's examples for its number of steps; returns the seconds taken."""
    model.model.vision_tower.requires_grad_(False)

    def losses() -> Iterator[Tensor]:
        for examples, steps in lessons:
            for _ in range(steps):
                batch = draw(examples, recipe.stage1_batch_size)
                yield model(pixel_values=pictures.moved(batch), **encode(processor, model.config.image_seq_length, batch)).loss

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = sum(steps for _, steps in lessons)
    return optimise("Stage I", trained, losses(), steps, recipe.stage1_learning_rate)


def render_card(
    model: transformers.LlavaForConditionalGeneration, recipe: DenseRecipe, run: dict[str, object], scores: dict[str, Result]
) -> str:
    """The model card. ``run`` maps facts about this run, such as seconds, to their values; ``scores`` is by split."""
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    count["all"] = sum(count.values())  # the output layer is tied to the decoder's embedding
    facts = run | {f"parameters, {name.replace('_', ' ')}": f"{number:,}" for name, number in count.items()}
    facts |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", "easy-vqa")}
    facts |= {name.replace("_", " "): value for name, value in asdict(recipe).items()}
    return CARD.format(
        **asdict(recipe),
        wordings=", ".join(f'"{wording.format("a red shape")}"' for wording in ABSENCE),
        scores="\n\n".join(score_table(f"easy-VQA {name}", {"this model": score}) for name, score in scores.items()),
        facts=markdown_table(["Fact", "Value"], [(name, str(value)) for name, value in facts.items()]),
    )


def main() -> None:
    """Makes the model, its processor and its card, in a new folder, from nothing but easy-VQA."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # the order of sums, and so the weights, depend on the number of threads
    prepare(torch.device("cpu"))
    recipe = DenseRecipe()
    with new_folder(arguments.output) as folder:
        asked = easy_vqa.questions("train")
        told = easy_vqa.captions(easy_vqa.questions("train"))
        captions = [easy_vqa.Question(path, easy_vqa.CAPTION_REQUEST, text, "caption") for path, text in told.items()]
        processor = build_processor([text for item in [*asked, *captions] for text in (item.question, item.answer)], recipe)
        pictures = Pictures((item.image_path for item in asked), processor.image_processor)
        held_back = set(list(pictures.rows)[-recipe.validation_pictures :])
        captions = [item for item in captions if item.image_path not in held_back]
        tower, tower_seconds = train_vision_tower(pictures, captions, recipe)
        model = build_vlm(tower, processor, pictures.pixels_NCHW[: recipe.scaling_pictures], recipe)
        mix = [item for item in asked if item.image_path not in held_back and item.type != "yes/no negated"] + captions
        absence = balance([*mix, *absence_questions(mix)])
        lessons = [(balance(mix), recipe.stage1_steps), (absence, recipe.stage1_absence_steps)]
        stage1_seconds = warm_up(model, processor, pictures, lessons, recipe)
        few = list(pictures.rows)[: recipe.negated_pictures]
        negated = [item for item in asked if item.type == "yes/no negated" and item.image_path in few]
        torch.manual_seed(arguments.seed)  # so that this last lesson can be given again to the same model
        stage1_seconds += warm_up(model, processor, pictures, [([*mix, *negated], recipe.negated_steps)], recipe)
        validation = [item for item in asked if item.image_path in held_back]
        splits = {"validation split": questions(validation), "test split": questions(easy_vqa.questions("test"))}
        prompts = {name: Prompts([*map(ask, split)], processor) for name, split in splits.items()}
        scores = {name: evaluate(model, BENCHMARK, split, prompts[name]) for name, split in splits.items()}
        run = {"seed": arguments.seed, "vision tower, seconds": int(tower_seconds), "Stage I, seconds": int(stage1_seconds)}
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_text(folder / "README.md", render_card(model, recipe, run, scores))


if __name__ == "__main__":
    main()
