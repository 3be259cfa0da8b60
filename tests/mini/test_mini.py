import base64
import csv
import hashlib
import json
import random
import re
import runpy
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from mini_answers import derive
from PIL import Image

from evomoe import mini
from evomoe.data.prompts import LETTER_ANSWER, SHORT_ANSWER
from evomoe.data.records import load_records
from evomoe.mini import claims, sampling, training
from evomoe.mini.pictures import Studio
from evomoe.mini.scene import Scene

SMALL = mini.Sizes(60, 60, 150, 60, mini.TestSizes(2, 2, 9, 2, 2, 1, 14), mini.TestSizes(20, 20, 27, 20, 12, 3, 42))
MME = "MME_Benchmark_release_version"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, Scene], dict[str, list[Scene]]]:
    """A small world, the scene of every picture file by its path, and the scenes of the pictures in tables, by split."""
    folder = tmp_path_factory.mktemp("mini") / "world"
    files, tables = {}, defaultdict(list)
    plain_save, plain_draw = Studio.save, Studio.draw

    def save(self, scene, path):
        files[str(path).partition(".partial/")[2]] = scene
        plain_save(self, scene, path)

    def draw(self, scene):
        tables[self.sampler.split].append(scene)
        return plain_draw(self, scene)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "save", save)
        patch.setattr(Studio, "draw", draw)
        mini.write(folder, seed=3, sizes=SMALL)
    saved = set(files.values())
    return folder, files, {split: [scene for scene in scenes if scene not in saved] for split, scenes in tables.items()}


@pytest.fixture(scope="module")
def test_split(world) -> Path:
    return world[0] / "test"


def read(path: Path):
    return json.loads(path.read_text())


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes(tmp_path):
    tiny = mini.TestSizes(1, 1, 2, 1, 1, 1, 3)
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        mini.write(tmp_path / name, seed, mini.Sizes(4, 4, 4, 4, tiny, tiny))
    one, two, other = (hashes(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and one != other and len(one) > 60
    with pytest.raises(ValueError, match="one exists already"):
        mini.write(tmp_path / "one")
    with pytest.raises(ValueError, match="^gqa: 0 is too few; every test set needs at least 1"):
        mini.TestSizes(gqa=0)


def test_a_fraction_of_the_world_has_some_of_everything():
    tenth, least = mini.Sizes().times(0.1), mini.Sizes().times(1e-9)
    assert (tenth.letters, tenth.stage2, tenth.validation.mme, tenth.test.gqa) == (3200, 1600, 2, 50)
    assert {least.words, least.stage1, *vars(least.validation).values(), *vars(least.test).values()} == {1}
    assert mini.Sizes().times(1) == mini.Sizes()
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="fraction: .* must be positive"):
            mini.Sizes().times(wrong)


def test_a_world_of_more_records_begins_with_the_same(tmp_path):
    few = mini.TestSizes(1, 1, 2, 1, 1, 1, 3)
    for name, stage2 in (("usual", 4), ("more", 7)):
        mini.write(tmp_path / name, 5, mini.Sizes(4, 4, 4, stage2, few, few))
    usual, more = ({file.name: file for file in (tmp_path / name / "train").rglob("*.*")} for name in ("usual", "more"))
    records, all_records = (json.loads(files["stage2.json"].read_text()) for files in (usual, more))
    assert all_records[:4] == records and len(all_records) == 7
    assert all(usual[name].read_bytes() == more[name].read_bytes() for name in usual if not name.startswith("stage2"))
    assert {name for name in more.keys() - usual.keys()} <= {f"stage2-{n:06d}.jpg" for n in (4, 5, 6)}


def test_ensure_writes_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        mini.world,
        "write",
        lambda folder, seed, sizes, training: (made.append((seed, sizes and sizes.stage2, training)), folder.mkdir(parents=True)),
    )
    monkeypatch.setenv("EVOMOE_CACHE", str(tmp_path / "cache"))
    assert mini.ensure(4) == mini.ensure(4) == tmp_path / "cache" / f"mini-v{mini.VERSION}-seed4"
    assert mini.ensure(4, tmp_path / "else") == tmp_path / "else" / f"mini-v{mini.VERSION}-seed4"
    assert mini.ensure(4, training=False) == mini.ensure(4)  # the whole world has the test sets too
    assert mini.ensure(5, training=False).name == f"mini-v{mini.VERSION}-seed5-without-training"
    assert mini.ensure(4, stage2=99) == mini.ensure(4, stage2=99) == tmp_path / "cache" / f"mini-v{mini.VERSION}-seed4-stage2-99"
    assert made == [(4, None, True), (4, None, True), (5, None, False), (4, 99, True)] and [
        path.name for path in (tmp_path / "else").iterdir()
    ] == [f"mini-v{mini.VERSION}-seed4"]


def test_ensure_takes_the_world_of_a_quicker_process(tmp_path, monkeypatch):
    finished = tmp_path / f"mini-v{mini.VERSION}-seed0"

    def slow(folder, seed, sizes, training):
        for path in (folder, finished):
            path.mkdir()
            (path / "README.md").write_text(path.name)

    monkeypatch.setattr(mini.world, "write", slow)
    assert mini.ensure(root=tmp_path) == finished
    assert [path.name for path in tmp_path.iterdir()] == [finished.name]
    assert (finished / "README.md").read_text() == finished.name


def test_command_line(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(mini, "write", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("sys.argv", ["mini", "out", "--seed", "7", "--fraction", "0.5"])
    runpy.run_module("evomoe.mini")
    assert asked == [("out", 7, mini.Sizes().times(0.5))]
    monkeypatch.setattr("sys.argv", ["mini", "out", "--fraction", "0"])
    with pytest.raises(SystemExit):
        runpy.run_module("evomoe.mini")
    assert "fraction: 0.0 must be positive" in capsys.readouterr().err


def test_no_scene_in_two_splits(world):
    _, files, tables = world
    splits = {
        split: {s for path, s in files.items() if path.startswith(f"{split}/")} for split in ("train", "validation", "test")
    }
    for split, scenes in tables.items():
        splits[split] |= {*scenes}
    assert [len(found) > 30 for found in splits.values()] == [True] * 3
    assert sum(map(len, splits.values())) == len(set().union(*splits.values()))
    strokes = {split: {digit.sample for s in scenes for digit in s.digits} for split, scenes in splits.items()}
    assert all(strokes.values()) and not strokes["train"] & (strokes["validation"] | strokes["test"])
    assert not strokes["validation"] & strokes["test"]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training_records(world, stage):
    folder, files, _ = world
    records = load_records(folder / "train" / f"{stage}.json", folder / "train" / "images")
    assert len(records) == getattr(SMALL, stage) and not records.skipped
    scenes = read(folder / "train" / f"{stage}_scenes.json")
    seen = Counter()
    for row in read(folder / "train" / f"{stage}.json"):
        shown = files[f"train/images/{row['image']}"] if "image" in row else Scene()
        if "image" in row:
            assert len(scenes[row["image"]]["things"]) == len(shown.things)
        turns = [turn["value"] for turn in row["conversations"]]
        assert turns[0].startswith("<image>\n") == ("image" in row)
        for text, answer in zip(turns[::2], turns[1::2], strict=True):
            text = text.removeprefix("<image>\n")
            if text == training.CAPTION_REQUEST:
                seen["caption"] += 1
                assert sum(f"{thing.size} {thing.name}" in answer for thing in shown.things) == len(shown.things)
                assert all(writing.text in answer for writing in shown.writings) and shown.person in answer
                continue
            asked = text.removesuffix(SHORT_ANSWER).removesuffix(LETTER_ANSWER)
            assert asked != text
            hint, lines = "", asked.removeprefix("Context: ").split("\n")
            if not lines[0].endswith("?"):
                hint, *lines = lines
            seen["hint"] += bool(hint)
            seen["context"] += asked.startswith("Context: ")
            right = derive(lines[0], shown, hint)
            if text.endswith(LETTER_ANSWER):
                options = dict(line.split(". ") for line in lines[1:])
                assert options[answer] == right
                seen["letter"] += 1
            else:
                assert answer == right and (len(lines) == 1 or lines[1].startswith("Reference OCR token: "))
                seen["recognised"] += len(lines) == 2
    assert {"letter", "hint", "context", "recognised"} <= {name for name, count in seen.items() if count}
    assert (seen["caption"] > 0) == (stage == "stage1")


@pytest.mark.parametrize("name", ["letters", "words"])
def test_words(world, name):
    path = world[0] / "train" / f"{name}.json"
    records = load_records(path)
    assert len(records) == getattr(SMALL, name) and not records.skipped
    turns = [turn["value"] for row in read(path) for turn in row["conversations"]]
    assert not any("<image>" in turn for turn in turns)
    lettered = sum(text.endswith(LETTER_ANSWER) for text in turns[::2])
    assert lettered == len(turns) / 2 if name == "letters" else 20 < lettered < len(turns) / 3


def test_vqav2(world, test_split):
    folder = test_split / "vqav2"
    asked = read(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = read(folder / "v2_mscoco_val2014_annotations.json")["annotations"]
    assert [q["question_id"] for q in asked] == [a["question_id"] for a in annotations] and len(asked) >= 60
    assert len({q["question_id"] for q in asked}) == len(asked)
    types = Counter()
    for question, annotation in zip(asked, annotations, strict=True):
        path = f"val2014/COCO_val2014_{question['image_id']:012d}.jpg"
        assert Image.open(folder / path).size == (64, 64)
        right = derive(question["question"], world[1][f"test/vqav2/{path}"])
        assert annotation["multiple_choice_answer"] == right and annotation["image_id"] == question["image_id"]
        answers = [answer["answer"] for answer in annotation["answers"]]
        assert [answer["answer_id"] for answer in annotation["answers"]] == [*range(1, 11)]
        assert all(answers.count(right) > answers.count(other) for other in {*answers} - {right})
        assert question["question"].lower().startswith(annotation["question_type"])
        types[annotation["answer_type"]] += 1
        assert annotation["answer_type"] == ("yes/no" if right in ("yes", "no") else "number" if right.isdigit() else "other")
    assert len(types) == 3


def test_gqa(world, test_split):
    entries = read(test_split / "gqa" / "testdev_balanced_questions.json")
    fields = {"semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer", "semanticStr"}
    fields |= {"annotations", "types", "fullAnswer"}
    structural = set()
    for key, entry in entries.items():
        assert {*entry} == fields and entry["isBalanced"] is True and entry["equivalent"] == [key]
        assert derive(entry["question"], world[1][f"test/gqa/images/{entry['imageId']}.jpg"]) == entry["answer"]
        assert {*entry["types"]} == {"detailed", "semantic", "structural"} and {*entry["groups"]} == {"global", "local"}
        structural.add(entry["types"]["structural"])
    assert structural == {"query", "verify", "choose", "logical", "compare"}
    assert len(entries) >= 60


def test_scienceqa(world, test_split):
    folder = test_split / "sqa"
    problems, splits = read(folder / "problems.json"), read(folder / "pid_splits.json")
    assert splits["test"] == list(problems) and len(problems) == 27
    for pid, problem in problems.items():
        path = folder / "images" / "test" / pid / "image.png"
        assert path.exists() == (problem["image"] is not None)
        shown = world[1].get(f"test/sqa/images/test/{pid}/image.png", Scene())
        assert problem["choices"][problem["answer"]] == derive(problem["question"], shown, problem["hint"])
        assert problem["split"] == "test" and problem["task"] == "closed choice"
    assert {problem["subject"] for problem in problems.values()} == {"natural science", "social science", "language science"}
    assert {bool(problem["hint"]) for problem in problems.values()} == {True, False}
    assert {problem["image"] for problem in problems.values()} == {None, "image.png"}


def test_textvqa(world, test_split):
    folder = test_split / "textvqa"
    data = read(folder / "TextVQA_0.5.1_val.json")["data"]
    tokens = {row["image_id"]: row for row in read(folder / "TextVQA_Rosetta_OCR_v0.2_val.json")["data"]}
    assert len({row["question_id"] for row in data}) == len(data) >= 20
    assert len({(row["image_id"], row["question"].lower()) for row in data}) == len(data)
    for row in data:
        shown = world[1][f"test/textvqa/train_images/{row['image_id']}.jpg"]
        assert Counter(row["answers"]).most_common(1)[0][0] == derive(row["question"], shown) and len(row["answers"]) == 10
        assert (row["image_width"], row["image_height"]) == Image.open(folder / "train_images" / f"{row['image_id']}.jpg").size
    read_right = 0
    for image_id, row in tokens.items():
        shown = world[1][f"test/textvqa/train_images/{image_id}.jpg"]
        assert row["ocr_tokens"] == [info["word"] for info in row["ocr_info"]]
        read_right += sum(writing.text in row["ocr_tokens"] for writing in shown.writings)
        tops = {round(info["bounding_box"]["top_left_y"] * 4) for info in row["ocr_info"]}
        assert tops <= {writing.row for writing in shown.writings}
    assert 0.6 < read_right / sum(len(world[1][f"test/textvqa/train_images/{name}.jpg"].writings) for name in tokens) < 1


def test_pope(world, test_split):
    folder = test_split / "pope"
    positives = []
    for split in ("random", "popular", "adversarial"):
        rows = [json.loads(line) for line in (folder / "coco" / f"coco_pope_{split}.json").read_text().splitlines()]
        assert [row["question_id"] for row in rows] == [*range(1, 73)]
        by_image = defaultdict(list)
        for row in rows:
            assert {*row} == {"question_id", "image", "text", "label"}
            assert derive(row["text"], world[1][f"test/pope/val2014/{row['image']}"]) == row["label"]
            assert (folder / "val2014" / row["image"]).exists()
            by_image[row["image"]].append(row)
        assert len(by_image) == 12
        for group in by_image.values():
            assert [row["label"] for row in group] == ["yes", "no"] * 3 and len({row["text"] for row in group}) == 6
        positives.append([row["text"] for row in rows if row["label"] == "yes"])
    assert positives[0] == positives[1] == positives[2]


def test_negatives_are_what_they_are_called(world, test_split, handwriting):
    """Counted anew over other scenes of the world: popular ones are frequent, adversarial ones go with what is there."""
    sampler = sampling.Sampler(random.Random(9), handwriting, "train")
    others = [{thing.name for thing in sampler("crowd").things} for _ in range(800)]
    frequency, company = {}, {}
    for split in ("random", "popular", "adversarial"):
        lines = (test_split / "pope" / "coco" / f"coco_pope_{split}.json").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["label"] == "no"]
        named = [(re.search(r"an? (\w+ \w+) in", row["text"])[1], world[1][f"test/pope/val2014/{row['image']}"]) for row in rows]
        frequency[split] = sum(name in seen for name, _ in named for seen in others) / len(named)
        pairs = [(name, thing.name) for name, shown in named for thing in shown.things]
        company[split] = sum({*pair} <= seen for pair in pairs for seen in others) / len(pairs)
    assert frequency["popular"] > 2 * frequency["random"]
    assert company["adversarial"] > 1.3 * company["popular"] > 1.3 * company["random"]


def test_mme(world, test_split):
    folder = test_split / "mme" / MME
    assert sorted(path.name for path in folder.iterdir()) == sorted(claims.SUBTASKS) and len(claims.SUBTASKS) == 14
    first = Counter()
    for subtask in folder.iterdir():
        texts = sorted(subtask.rglob("*.txt"))
        assert len(texts) == 3
        for path in texts:
            images = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
            image = images / f"{path.stem}.jpg"
            assert image.exists()
            lines = [line.split("\t") for line in path.read_text().splitlines()]
            assert sorted(answer for _, answer in lines) == ["No", "Yes"]
            first[lines[0][1]] += 1
            shown = world[1][str(image.relative_to(world[0]))]
            for text, answer in lines:
                assert derive(text.removesuffix(" Please answer yes or no."), shown) == answer.lower() and text.endswith("no.")
    assert len(first) == 2


def test_mmbench(world, test_split):
    with open(test_split / "mmbench" / "mmbench_dev_20230712.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = "index question hint A B C D answer category image source l2-category comment split"
    assert list(rows[0]) == names.split()
    groups = defaultdict(list)
    for row in rows:
        groups[int(row["index"]) % 10**6].append(row)
    assert list(groups) == [*range(1, 43)] and len({row["index"] for row in rows}) == len(rows)
    assert {len(group) for group in groups.values()} >= {2, 4}
    for group, shown in zip(groups.values(), world[2]["test"], strict=True):
        base = [group[0][letter] for letter in "ABCD" if group[0][letter]]
        right = derive(group[0]["question"], shown, group[0]["hint"])
        assert len(group) == len(base)
        for turn, row in enumerate(group):
            assert int(row["index"]) // 10**6 == turn
            options = [row[letter] for letter in "ABCD" if row[letter]]
            assert options == base[turn:] + base[:turn] and row[row["answer"]] == right
            assert row["image"] == group[0]["image"]
    image = base64.b64decode(rows[0]["image"])
    assert image[:2] == b"\xff\xd8" and rows[0]["split"] == "dev"
