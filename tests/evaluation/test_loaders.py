"""The official files and the hub's parquet, in tiny copies: what is read, how pictures are shared, what is refused."""

import json
import re

import official_files
import pytest
from official_files import BLUE, RED, WRITERS

from evomoe.data.images import BadImageError
from evomoe.evaluation import BENCHMARKS
from evomoe.evaluation.data_folder import MissingDataError
from evomoe.evaluation.pictures import check_pictures
from evomoe.evaluation.questions import find_data, load_questions


def load(name, root):
    folder = find_data(BENCHMARKS[name], str(root))
    return load_questions(BENCHMARKS[name], folder, any_version=True), folder


@pytest.fixture
def written(tmp_path):
    def write(name):
        path = tmp_path / ("textvqa" if name == "textvqa-ocr" else name)
        WRITERS[name](path)
        return path

    return write


WANTED = {
    "vqav2": [("42000", "red", "what color is the"), ("42001", "yes", "is the")],
    "gqa": [("1", "red", "query"), ("2", "yes", "verify")],
    "sqa": [("7", "B", "language science"), ("5", "A", "natural science")],
    "textvqa": [("34602", "stop", ""), ("34603", "stop", "")],
    "textvqa-ocr": [("34602", "stop", ""), ("34603", "stop", "")],
    "pope": [(f"{s}/{i}", ("yes", "no")[i - 1], s) for s in ("random", "popular", "adversarial") for i in (1, 2)],
    "mme": [
        (f"{image}/{i}", ("yes", "no")[i - 1], image.split("/")[0])
        for image in ("color/000001.jpg", "artwork/7.png", "code_reasoning/0001.png")
        for i in (1, 2)
    ],
    "mmbench": [
        ("3", "A", "colour"),
        ("4", "B", "truth"),
        ("1000003", "B", "colour"),
        ("1000004", "A", "truth"),
        ("2000003", "C", "colour"),
    ],
}
PICTURES = {"vqav2": 1, "gqa": 1, "sqa": 1, "textvqa": 2, "textvqa-ocr": 2, "pope": 1, "mme": 3, "mmbench": 2}


@pytest.mark.parametrize("name", WANTED)
def test_official_files(name, written, tmp_path):
    written(name)
    questions, folder = load(name, tmp_path)
    assert [(question.id, question.answer, question.type) for question in questions] == WANTED[name]
    pictures = {question.picture.key: question.picture for question in questions if question.picture}
    assert len(pictures) == PICTURES[name]
    assert {picture.open().getpixel((0, 0)) for picture in pictures.values()} <= {RED, BLUE}
    assert folder.read and all(len(facts["md5"]) == 32 for facts in folder.read.values())
    check_pictures(name, [question.picture for question in questions])


@pytest.mark.parametrize("name", [name for name in WANTED if name != "textvqa-ocr"])
def test_parquet(name, tmp_path):
    official_files.parquet(name, tmp_path / name)
    questions, _ = load(name, tmp_path)
    right = {question.id: question.answer for question in questions}
    result = BENCHMARKS[name].score(questions, right, "official")
    assert result.score == pytest.approx(200 if name == "mme" else 100)
    assert len({question.picture.key for question in questions}) == {"mmbench": 2}.get(name, 1)
    assert questions[0].picture.open().getpixel((0, 0)) == RED


def test_a_split_that_popes_parquet_lacks_is_named(tmp_path):
    rows = official_files.pope_rows(("adversarial", "random"))
    official_files.write_parquet(tmp_path / "pope", {("default", "test"): rows})
    with pytest.raises(ValueError, match="lmms-lab-encoder/POPE: there are no questions of the split popular"):
        load("pope", tmp_path)


def test_questions_of_vqav2_without_an_annotation_are_counted(written, tmp_path):
    path = written("vqav2") / "v2_mscoco_val2014_annotations.json"
    path.write_text(json.dumps({"annotations": json.loads(path.read_text())["annotations"][:1]}))
    message = r"annotations.json: no annotation for 1 question of .*val2014_questions.json, first 42001\. Are the two"
    with pytest.raises(ValueError, match=message):
        load("vqav2", tmp_path)


def rotated(choices, rotations, turning):
    """A group's rows, of which the first ``turning`` choices go round."""
    rows = []
    for k in range(rotations):
        turned = [choices[(i - k) % turning] if i < turning else choices[i] for i in range(len(choices))]
        cells = [*turned, *[""] * (4 - len(turned))]
        rows.append([str(1_000_000 * k + 5), "Which?", "", *cells, "A", "x", "aGk=", "s", "l2", "", "dev"])
    return rows


@pytest.mark.parametrize(("choices", "turning"), [("pq", 2), ("pqr", 3), ("pqrs", 4), ("pqrs", 3)])
def test_the_last_rotation_of_mmbench_may_not_be_missing(choices, turning, tmp_path):
    """Four choices whose last one stays in its place go round three times, as in the published table."""
    official_files.mmbench(tmp_path / "mmbench", rotated(choices, turning, turning))
    assert len(load("mmbench", tmp_path)[0]) == turning
    official_files.mmbench(tmp_path / "mmbench", rotated(choices, turning - 1, turning))
    message = rf"mmbench_dev_20230712.tsv: group 5 lacks rotation {turning - 1}, the row of index {turning - 1},000,005"
    with pytest.raises(ValueError, match=message):
        load("mmbench", tmp_path)


def test_fields_that_the_scorers_need(written, tmp_path):
    for name in WANTED:
        written(name)
    of = {name: load(name, tmp_path)[0] for name in WANTED}
    assert of["vqav2"][0].answers == ("red",) * 6 + ("other",) * 4 and of["vqav2"][1].answer_type == "yes/no"
    assert of["textvqa"][0].ocr_tokens is None and of["textvqa-ocr"][0].ocr_tokens == ("STOP", "now")
    assert of["sqa"][0].picture is None and of["sqa"][1].hint == "Look." and of["sqa"][1].choices == ("red", "blue")
    assert [question.unit for question in of["mmbench"]] == ["3", "4", "3", "4", "3"]
    assert of["mmbench"][1].text == '"Quoted\tquestion"'
    assert of["mmbench"][1].choices == ("yes", "no") and of["mmbench"][0].hint == ""
    assert len({question.unit for question in of["mme"]}) == 3
    assert of["gqa"][0].semantic == "attr"


def test_prompts_of_every_protocol(written, tmp_path):
    for name in WANTED:
        written(name)

    def ask(name, protocol, number=0):
        return BENCHMARKS[name].prompt(load(name, tmp_path)[0][number], protocol)

    short, letter = (
        "\nAnswer the question using a single word or phrase.",
        "\nAnswer with the option's letter from the given choices directly.",
    )
    for protocol in ("official", "lmms-eval", "vlmevalkit"):
        assert ask("gqa", protocol) == "What color is it?" + short
    assert ask("vqav2", "official") == ask("vqav2", "lmms-eval") == "What color is the sky?" + short
    with pytest.raises(ValueError, match="VLMEvalKit has no VQAv2"):
        ask("vqav2", "vlmevalkit")
    assert ask("textvqa", "official") == ask("textvqa", "vlmevalkit") == "What does it SAY?" + short
    assert ask("textvqa", "lmms-eval") == "What does it say?" + short
    assert ask("textvqa-ocr", "official") == "What does it SAY?\nReference OCR token: STOP, now" + short
    assert ask("textvqa-ocr", "official", 1) == "Who?\nReference OCR token: " + short
    with pytest.raises(ValueError, match="without OCR words"):
        ask("textvqa-ocr", "vlmevalkit")
    assert ask("pope", "official") == ask("pope", "lmms-eval") == "Is there a cat in the image?" + short
    assert ask("pope", "vlmevalkit") == "Is there a cat in the image?"
    assert ask("mme", "official") == "Is it red?" + short
    assert ask("mme", "lmms-eval") == "Is it red? " + short  # its replacement leaves the second space
    assert ask("mme", "vlmevalkit") == "Is it red?  Please answer yes or no."
    assert ask("sqa", "official") == "What is it?\nA. red\nB. blue" + letter
    assert ask("sqa", "lmms-eval", 1) == "Context: Look.\nWhat is it?\nA. red\nB. blue" + letter
    assert ask("sqa", "vlmevalkit", 1).startswith("Hint: Look.\nQuestion: What is it?\nOptions:\nA. red\n")
    assert ask("mmbench", "official") == "Which?\nA. red\nB. blue\nC. green" + letter
    assert ask("mmbench", "official", 3).startswith("A hint.\n")
    assert ask("mmbench", "lmms-eval") == "Which? There are several options:\nA. red\nB. blue\nC. green\n" + letter
    assert ask("mmbench", "vlmevalkit").startswith("Question: Which?\nOptions:\nA. red\n")


def test_the_test_split_of_vqav2_can_only_be_sent_in(tmp_path):
    dev = [
        {
            "question_id": 2,
            "image": "COCO_test2015_000000000001.jpg",
            "text": "Is it?\nAnswer the question using a single word or phrase.",
        }
    ]
    folder = tmp_path / "vqav2"
    official_files.write(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", official_files.lines(dev))
    whole = [{"image_id": 1, "question": "Is it?", "question_id": number} for number in (1, 2, 3)]
    official_files.write(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": whole})
    questions, _ = load("vqav2", tmp_path)
    assert [(question.id, question.text) for question in questions] == [("2", "Is it?")]
    with pytest.raises(ValueError, match=r"not public.*submission.*eval\.ai"):
        BENCHMARKS["vqav2"].score(questions, {"2": "yes"}, "official")
    (path,) = BENCHMARKS["vqav2"].submit(questions, {"2": "The man's, hat."}, tmp_path / "out")
    sent = {record["question_id"]: record["answer"] for record in json.loads(path.read_text())}
    assert sent == {2: "man 's hat", 1: "", 3: ""}
    (folder / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    with pytest.raises(ValueError, match="wants every id of test2015: put llava_vqav2_mscoco_test2015.jsonl or"):
        BENCHMARKS["vqav2"].submit(load("vqav2", tmp_path)[0], {"2": "x"}, tmp_path / "out")


@pytest.mark.parametrize("name", WANTED)
def test_missing_pictures_are_told_and_do_not_keep_from_scoring(name, written, tmp_path):
    if name == "mmbench":
        pytest.skip("its pictures are in the table")
    path = written(name)
    for picture in [*path.rglob("*.jpg"), *path.rglob("*.png")]:
        picture.unlink()
    questions, _ = load(name, tmp_path)
    with pytest.raises(MissingDataError, match=rf"{name}: (\d) pictures? of \1 missing, first {tmp_path}"):
        check_pictures(name, [question.picture for question in questions])


REPLACED = {
    "vqav2": ("v2_mscoco_val2014_annotations.json", '"image_id": 42, "question_type"', '"image_id": 42, "question_typ"', "record 1: the record has no field 'question_type'"),
    "vqav2 nine": ("v2_mscoco_val2014_annotations.json", ', {"answer": "yes", "answer_confidence": "yes", "answer_id": 10}', "", "record 2, question 42001: 10 annotators expected, but 9 found"),
    "vqav2 answer": ("v2_mscoco_val2014_annotations.json", '{"answer": "red"', '{"answer": null', "record 1, question 42000: annotator 1's answer must be text, not None"),
    "vqav2 answers": ("v2_mscoco_val2014_annotations.json", '"answers": [', '"answers": 5, "x": [', "record 1, question 42000: the annotators' answers must be a list, not 5"),
    "vqav2 no image": ("v2_mscoco_val2014_annotations.json", '"image_id": 42', '"image_id": "42"', "record 1: the field 'image_id' must be a whole number, not '42'"),
    "vqav2 twice": ("v2_OpenEnded_mscoco_val2014_questions.json", "42001", "42000", "val2014_questions.json: 1 id occurs twice, first '42000'"),
    "vqav2 annotated twice": ("v2_mscoco_val2014_annotations.json", "42001", "42000", "v2_mscoco_val2014_annotations.json: 1 id occurs twice, first '42000'"),
    "vqav2 question": ("v2_OpenEnded_mscoco_val2014_questions.json", '"question": "Is', '"query": "Is', "questions.json, record 2: the record has no field 'question'"),
    "vqav2 list": ("v2_OpenEnded_mscoco_val2014_questions.json", '"questions": [', '"questions": null, "x": [', "questions.json: the field 'questions' must be a list, not None"),
    "vqav2 image": ("v2_mscoco_val2014_annotations.json", '"question_id": 42001, "image_id": 42', '"question_id": 42001, "image_id": 43', "annotations.json, record 2: question 42001 is about COCO_val2014_000000000043.jpg, but in .*questions.json about COCO_val2014_000000000042.jpg"),
    "vqav2 version": ("v2_OpenEnded_mscoco_val2014_questions.json", '"question_id": 42001', '"question_id": 42009', "question 42001 is not in"),
    "gqa": ("testdev_balanced_questions.json", '"structural"', '"x"', "question 1: the record has no field 'structural'"),
    "gqa twice": ("testdev_balanced_questions.json", '"2": {', '"1": {', "testdev_balanced_questions.json: the key '1' occurs twice in one object"),
    "gqa broken": ("testdev_balanced_questions.json", "{", "[", "line 1, column .*broken JSON"),
    "gqa outside": ("testdev_balanced_questions.json", '"n1"', '"../../n1"', "question 1: the image path .* leaves the image folder"),
    "sqa twice": ("problems.json", '"7": {', '"5": {', "problems.json: the key '5' occurs twice"),
    "sqa listed twice": ("pid_splits.json", '"5"', '"7"', "sqa: 1 id occurs twice, first '7', in problems.json, pid_splits.json"),
    "sqa choice": ("problems.json", '"red"', "3", "problem 5: an entry of 'choices' must be text, not 3"),
    "sqa outside": ("problems.json", '"image.png"', '"../../../x.png"', "problem 5: the image path .* leaves"),
    "sqa": ("problems.json", '"answer": 0', '"answer": 2', "problem 5: the answer is choice 2 of 2"),
    "textvqa": ("TextVQA_0.5.1_val.json", '["stop", ', "[", "record 1, question 34602: 10 annotators expected, but 9 found"),
    "textvqa-ocr": ("TextVQA_Rosetta_OCR_v0.2_val.json", '"ab2"', '"ab3"', "the picture 'ab2' is not in TextVQA_Rosetta"),
    "textvqa-ocr word": ("TextVQA_Rosetta_OCR_v0.2_val.json", '"STOP"', "5", "record 1: an entry of 'ocr_tokens' must be text, not 5"),
    "textvqa-ocr twice": ("TextVQA_Rosetta_OCR_v0.2_val.json", '"ab2"', '"ab1"', "record 2: the picture 'ab1' stands there twice, with other words"),
    "pope": ("coco/coco_pope_popular.json", '"label": "no"', '"label": "maybe"', "record 2: the label 'maybe' is neither yes nor no"),
    "pope line": ("coco/coco_pope_popular.json", '"label": "no"}', '"label": "no"', "line 2, column .*broken JSON"),
    "pope split": ("coco/coco_pope_popular.json", None, "", "coco_pope_popular.json: there are no questions of the split popular"),
    "pope twice": ("coco/coco_pope_popular.json", '"question_id": 2', '"question_id": 1', "1 id occurs twice, first 'popular/1', in coco/coco_pope_random.json, "),
    "mme": ("MME_Benchmark_release_version/artwork/questions_answers_YN/7.txt", "\nIs it blue? Please answer yes or no.\tNo", "", "7.txt: 1 questions; MME has two"),
    "mme tab": ("MME_Benchmark_release_version/color/000001.txt", "\tYes", " Yes", "line 1: no tab"),
    "mme answer": ("MME_Benchmark_release_version/color/000001.txt", "\tYes", "\tYep", "line 1: the answer 'yep'"),
    "mmbench": ("mmbench_dev_20230712.tsv", "2000003", "3000003", "mmbench_dev_20230712.tsv: group 3 lacks rotation 2, the row of index 2,000,003"),
    "mmbench index": ("mmbench_dev_20230712.tsv", "2000003", "x", "record 5: the index 'x' is not a number"),
    "mmbench column": ("mmbench_dev_20230712.tsv", "question\t", "quest\t", "record 1: the record has no field 'question'"),
    "mmbench line end": ("mmbench_dev_20230712.tsv", "A hint.", "A\rhint.", "mmbench_dev_20230712.tsv, line 3: broken table"),
    "mmbench answer": ("mmbench_dev_20230712.tsv", "\tC\tcolour", "\tD\tcolour", "record 5: the answer 'D' is not among the 3 choices"),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACED)
def test_broken_files_are_named(case, written, tmp_path):
    name, (file, old, new, message) = case.split()[0], REPLACED[case]
    path = written(name) / file
    text = path.read_text()
    assert old is None or old in text
    path.write_text(new if old is None else text.replace(old, new, 1), newline="")
    with pytest.raises((ValueError, BadImageError), match=message):
        load(name, tmp_path)


TEXTS = {
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", "record 1", ["question"]),
    "gqa": ("testdev_balanced_questions.json", "question 1", ["question", "answer", "imageId", "structural"]),
    "sqa": ("problems.json", "problem 7", ["question", "subject"]),
    "textvqa": ("TextVQA_0.5.1_val.json", "record 1", ["question", "image_id"]),
    "pope": ("coco/coco_pope_random.json", "record 1", ["image", "text", "label"]),
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, (_, _, fields) in TEXTS.items() for field in fields])
@pytest.mark.parametrize("value", [None, 7, ["yes"]])
def test_a_value_that_is_not_text_is_named(name, field, value, written, tmp_path):
    file, where, _ = TEXTS[name]
    path = written(name) / file
    path.write_text(re.sub(f'"{field}": "[^"]*"', f'"{field}": {json.dumps(value)}', path.read_text()))
    wanted = re.escape(f"{file}, {where}: the field '{field}' must be text, not {value!r}")
    with pytest.raises(ValueError, match=wanted):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "pope"])
def test_an_id_that_is_none_is_named(name, written, tmp_path):
    file, where, _ = TEXTS[name]
    path = written(name) / file
    path.write_text(re.sub('"question_id": [0-9]+', '"question_id": null', path.read_text(), count=1))
    with pytest.raises(ValueError, match=r", record [12]: the field 'question_id' must be text or a whole number, not None"):
        load(name, tmp_path)


def test_a_question_of_vqav2s_test_file_is_named(tmp_path):
    file = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_test2015_questions.json"
    official_files.write(file, {"questions": [{"image_id": 1, "question": "Is it?", "question_id": 1}, {"image_id": 1}]})
    with pytest.raises(ValueError, match="test2015_questions.json, record 2: the record has no field 'question_id'"):
        load("vqav2", tmp_path)


@pytest.mark.parametrize(
    "unpacked", ["mme", "mme/MME_Benchmark", "mme/MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version"]
)
def test_mmes_release_is_found_as_it_unpacks(unpacked, written, tmp_path):
    (written("mme") / "MME_Benchmark_release_version").rename(tmp_path / "release")
    (tmp_path / "mme").rmdir()
    (tmp_path / unpacked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "release").rename(tmp_path / unpacked)
    questions, _ = load("mme", tmp_path)
    assert [(question.id, question.answer, question.type) for question in questions] == WANTED["mme"]
    check_pictures("mme", [question.picture for question in questions])


def test_pictures_of_one_name_in_two_of_mmes_subtasks_are_two(tmp_path):
    rows = [
        {"question_id": f"{subtask}/0001.png", "image": official_files.encoded(colour), "category": subtask, "question": text, "answer": answer}
        for subtask, colour in (("OCR", RED), ("code_reasoning", BLUE))
        for text, answer in (("Is it so?", "Yes"), ("Is it not?", "No"))
    ]  # fmt: skip
    official_files.write_parquet(tmp_path / "mme", {("default", "test"): [rows[i] for i in (0, 2, 1, 3)]})
    questions, _ = load("mme", tmp_path)
    made = [(question.id, question.unit, question.text, question.picture.open().getpixel((0, 0))) for question in questions]
    assert made == [
        ("OCR/0001.png/1", "OCR/0001.png", "Is it so?", RED),
        ("code_reasoning/0001.png/1", "code_reasoning/0001.png", "Is it so?", BLUE),
        ("OCR/0001.png/2", "OCR/0001.png", "Is it not?", RED),
        ("code_reasoning/0001.png/2", "code_reasoning/0001.png", "Is it not?", BLUE),
    ]
    assert len({question.picture.key for question in questions}) == 2


def test_a_missing_file_is_named_with_its_origin(written, tmp_path):
    (written("pope") / "coco/coco_pope_random.json").unlink()
    with pytest.raises(MissingDataError, match=r"pope: missing in .*coco_pope_random.json \(from https://github.com/AoiDragon"):
        load("pope", tmp_path)


def test_mmbench_tables_of_vlmevalkit_name_the_row_of_the_picture(tmp_path):
    rows = official_files.mmbench_rows()
    image = official_files.MMBENCH_HEADER.index("image")
    for row in rows[2:]:
        row[image] = str(int(row[0]) % 1_000_000)
    rows.reverse()  # so that a reference stands before what it names
    official_files.mmbench(tmp_path / "mmbench", rows)
    questions, _ = load("mmbench", tmp_path)
    assert {question.unit: question.picture.open().getpixel((0, 0)) for question in questions} == {"3": RED, "4": BLUE}


def test_a_row_of_mmbench_that_stands_there_twice_is_named(tmp_path):
    rows = official_files.mmbench_rows()
    official_files.mmbench(tmp_path / "mmbench", [*rows, rows[2]])
    with pytest.raises(ValueError, match="mmbench: 1 id occurs twice, first '1000003', in mmbench_dev_20230712.tsv"):
        load("mmbench", tmp_path)
