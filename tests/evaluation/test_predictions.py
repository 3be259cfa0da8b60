"""Files of answers that other programs write: matched to questions, or refused with the line."""

import json
import zipfile
from dataclasses import replace

import pytest
from official_files import WRITERS, lines, write

from evomoe.evaluation import BENCHMARKS, predictions
from evomoe.evaluation.answers import AnswerFile
from evomoe.evaluation.benchmarks import mmbench
from evomoe.evaluation.data_folder import DataFolder

SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def questions(tmp_path):
    def made(name):
        folder = "textvqa" if name == "textvqa-ocr" else name
        WRITERS[name](tmp_path / folder)
        return BENCHMARKS[name].load(DataFolder(name, tmp_path / folder))

    return made


@pytest.mark.parametrize("name", list(WRITERS))
def test_our_own_answers(name, questions, tmp_path):
    asked = questions(name)
    wanted = {question.id: f"answer {number}" for number, question in enumerate(asked)}
    records = [{"id": identity, "answer": text} for identity, text in wanted.items()]
    write(tmp_path / "answers.jsonl", lines(records[::-1]))
    assert predictions.read(BENCHMARKS[f"mini-{name}"], asked, tmp_path / "answers.jsonl") == wanted
    file = AnswerFile(tmp_path / "eval", {})  # as `evomoe eval` writes them
    prompts = [f"<user> {BENCHMARKS[name].prompt(question, 'official')} <assistant>" for question in asked]
    file.append([(question, prompt, wanted[question.id]) for question, prompt in zip(asked, prompts, strict=True)], "model")
    file.finish(asked, prompts, "model")
    assert predictions.read(BENCHMARKS[name], asked, file.path) == wanted


@pytest.mark.parametrize(
    ("name", "records", "wanted"),
    [
        (
            "vqav2",
            [{"question_id": 42001, "answer": "yes"}, {"question_id": 42000, "answer": "red"}],
            {"42000": "red", "42001": "yes"},
        ),
        (
            "textvqa",
            [{"question_id": 34602, "answer": "stop"}, {"question_id": 34603, "answer": ""}],
            {"34602": "stop", "34603": ""},
        ),
        ("gqa", [{"questionId": "1", "prediction": "red"}, {"questionId": "2", "prediction": "yes"}], {"1": "red", "2": "yes"}),
    ],
)
def test_json_of_servers(name, records, wanted, questions, tmp_path):
    write(tmp_path / "answers.json", records)
    assert predictions.read(BENCHMARKS[name], questions(name), tmp_path / "answers.json") == wanted


LLAVA = {
    "sqa": [("5", "<image>\nContext: Look.\nWhat is it?\nA. red\nB. blue", "A"), ("7", "What is it?\nA. red", "B")],
    "mmbench": [
        (i, 'A hint.\n"Quoted question"\nA. yes' if i % 10 == 4 else "Which?\nA. red", "A") for i in (3, 4, 1000003, 1000004, 2000003)
    ],
    "gqa": [("1", "What color is it?" + SUFFIX, "A"), ("2", "Is it red?" + SUFFIX, "B")],
    "textvqa": [("ab2", "Who?" + SUFFIX, "B"), ("ab1", "What does it SAY?" + SUFFIX, "A")],
    "textvqa-ocr": [
        ("ab2", "Reference OCR token: \nwho?" + SUFFIX, "B"),
        ("ab1", "What does it say?\nReference OCR token: STOP, now" + SUFFIX, "A"),
    ],
    "mme": [
        (image, f"Is it {colour}?{SUFFIX}", colour)
        for image in ("code_reasoning/0001.png", "artwork/images/7.png", "color/000001.jpg")
        for colour in ("blue", "red")
    ],
    "pope": [
        (start + i, f"Is there a {name} in the image?{SUFFIX}", f"{split} {i}")
        for split, start in (("adversarial", 0), ("random", 10_000_000), ("popular", 20_000_000))
        for i, name in ((1, "cat"), (2, f"{split} dog"))
    ],
}  # fmt: skip
WANTED = {
    "sqa": {"7": "B", "5": "A"},
    "mmbench": dict.fromkeys(("3", "4", "1000003", "1000004", "2000003"), "A"),
    "gqa": {"1": "A", "2": "B"},
    "textvqa": {"34602": "A", "34603": "B"},
    "textvqa-ocr": {"34602": "A", "34603": "B"},
    "mme": {
        f"{image}/{i}": colour
        for image in ("color/000001.jpg", "artwork/7.png", "code_reasoning/0001.png")
        for i, colour in ((1, "red"), (2, "blue"))
    },
    "pope": {f"{split}/{i}": f"{split} {i}" for split in ("random", "popular", "adversarial") for i in (1, 2)},
}


def llava(name):
    return [{"question_id": identity, "prompt": prompt, "text": text, "answer_id": "x"} for identity, prompt, text in LLAVA[name]]


@pytest.mark.parametrize("name", list(LLAVA))
def test_llavas_answer_files(name, questions, tmp_path):
    write(tmp_path / "merge.jsonl", lines(llava(name)))
    assert predictions.read(BENCHMARKS[name], questions(name), tmp_path / "merge.jsonl") == WANTED[name]


def test_mmes_answers_are_matched_without_the_pictures(questions, tmp_path):
    """Then it is not known that code_reasoning's are PNG."""
    questions("mme")
    for picture in (tmp_path / "mme").rglob("*.png"):
        picture.unlink()
    write(tmp_path / "merge.jsonl", lines(llava("mme")))
    read = predictions.read(
        BENCHMARKS["mme"], BENCHMARKS["mme"].load(DataFolder("mme", tmp_path / "mme")), tmp_path / "merge.jsonl"
    )
    assert list(read.values()) == ["red", "blue"] * 3


def test_mmes_folder_round_trip(questions, tmp_path):
    asked = questions("mme")
    answers = {question.id: f"Yes, it\nis {number}" for number, question in enumerate(asked)}
    paths = BENCHMARKS["mme"].submit(asked, answers, tmp_path / "mme_out")
    assert sorted(path.name for path in paths) == ["artwork.txt", "code_reasoning.txt", "color.txt"]
    assert (tmp_path / "mme_out/color.txt").read_text().splitlines()[
        0
    ] == "000001.jpg\tIs it red?  Please answer yes or no.\tYes\tYes, it is 0"
    read = predictions.read(BENCHMARKS["mme"], asked, tmp_path / "mme_out")
    assert read == {identity: answer.replace("\n", " ") for identity, answer in answers.items()}
    text = (tmp_path / "mme_out/color.txt").read_text().splitlines(keepends=True)
    (tmp_path / "mme_out/color.txt").write_text(text[0])
    with pytest.raises(ValueError, match=r"color.txt, line 1: 000001.jpg stands alone"):
        predictions.read(BENCHMARKS["mme"], asked, tmp_path / "mme_out")
    (tmp_path / "mme_out/color.txt").write_text(text[0].replace("\t", " ", 1) + text[1])
    with pytest.raises(ValueError, match=r"color.txt, line 1: 3 cells"):
        predictions.read(BENCHMARKS["mme"], asked, tmp_path / "mme_out")


def test_gqas_file_round_trip(questions, tmp_path):
    asked = questions("gqa")
    (path,) = BENCHMARKS["gqa"].submit(asked, {"1": "Red.", "2": "YES"}, tmp_path / "out")
    assert json.loads(path.read_text()) == [{"questionId": "1", "prediction": "red"}, {"questionId": "2", "prediction": "yes"}]
    assert predictions.read(BENCHMARKS["gqa"], asked, path) == {"1": "red", "2": "yes"}


def test_mmbenchs_excel_round_trip(questions, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    asked = questions("mmbench")
    answers = {question.id: text for question, text in zip(asked, ("A", "=1+1", "B\x07", "", "D. it\nis"), strict=True)}
    (path,) = BENCHMARKS["mmbench"].submit(asked, answers, tmp_path / "out")
    rows = list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (3, "Which?", "red", "blue", "green", None, "A", "A", "dev")
    read = predictions.read(BENCHMARKS["mmbench"], asked, path)
    assert read == answers | {"1000003": "B"}  # Excel cannot hold the bell


def test_without_openpyxl_the_extra_is_named(questions, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    asked = questions("mmbench")
    with pytest.raises(ValueError, match=r"pip install openpyxl"):
        mmbench.submit(asked, dict.fromkeys((question.id for question in asked), "A"), tmp_path)
    write(tmp_path / "x.xlsx", b"x")
    with pytest.raises(ValueError, match=r"x.xlsx: reading an Excel file needs openpyxl"):
        predictions.read(BENCHMARKS["mmbench"], asked, tmp_path / "x.xlsx")


def test_mmbenchs_table(questions, tmp_path):
    rows = ["index\tanswer\tprediction"] + [f"{i}\tB\tA" for i in (3, 4, 1000003, 1000004, 2000003)]
    write(tmp_path / "x.tsv", "\n".join(rows) + "\n")
    assert predictions.read(BENCHMARKS["mmbench"], questions("mmbench"), tmp_path / "x.tsv") == WANTED["mmbench"]


def test_a_missing_rotation_is_named(questions, tmp_path):
    asked = questions("mmbench")
    write(tmp_path / "x.jsonl", lines(llava("mmbench")[:-1]))
    with pytest.raises(ValueError, match=r"mmbench: rotation 2 of group 3 has no answer \(question 2000003\)"):
        predictions.read(BENCHMARKS["mmbench"], asked, tmp_path / "x.jsonl")
    assert predictions.read(BENCHMARKS["mmbench"], asked, tmp_path / "x.jsonl", allow_missing=True)["2000003"] == ""


def test_an_unpaired_row_of_mme_is_named(questions, tmp_path):
    write(tmp_path / "x.jsonl", lines(llava("mme")[:-1]))
    with pytest.raises(
        ValueError, match=r"mme: one of the pair of color/000001.jpg has no answer \(question color/000001.jpg/1\)"
    ):
        predictions.read(BENCHMARKS["mme"], questions("mme"), tmp_path / "x.jsonl")


BROKEN = {
    "missing": ("gqa", lines(llava("gqa")[:1]), "1 question of 2 has no answer, first '2'"),
    "unknown": ("gqa", lines([*llava("gqa"), {"question_id": 9, "text": "x"}]), "1 answer of 3 is to no question.*first '9'"),
    "twice": ("gqa", lines(llava("gqa") * 2), "2 questions answered twice, first '1'"),
    "pope twice": ("pope", lines(llava("pope") + llava("pope")[:1]), "line 7: one answer too many to 'adversarial, line 1'"),
    "pope ids": ("pope", lines([{"question_id": 30_000_001, "text": "x"}]), "line 1: no question of these annotations is '30000001', the first of 1 such answer in 1; LLaVA's ids for POPE are 1 and on"),
    "pope version": ("pope", lines(llava("pope")).replace("random dog", "pear"), "line 4: asked 'Is there a pear in the image.*2,910"),
    "pope many": ("pope", lines([{"question_id": n, "text": "x"} for n in (1, 3, 30_000_001)]), "line 2: no question of these annotations is 'adversarial, line 3', the first of 2 such answers in 3; LLaVA's"),
    "mme unknown": ("mme", lines(llava("mme")).replace("red?", "green?", 1), "line 2: no question of these annotations is 'code_reasoning, 0001, Is it green.*, the first of 1 such answer in 6[.]$"),
    "mme many": ("mme", lines(llava("mme")).replace("red?", "green?"), "line 2: no question .*, the first of 3 such answers in 6[.]$"),
    "textvqa unknown": ("textvqa", lines(llava("textvqa")).replace("Who", "Whom"), "line 1: no question of these annotations is 'ab2, whom.*, the first of 1 such answer in 2[.]$"),
    "broken": ("gqa", lines(llava("gqa")) + '{"question_id": 3', "line 3, column 18: broken JSON"),
    "broken list": ("gqa", '[{"questionId": "1",\n]', "line 2, column 1: broken JSON"),
    "no answer": ("gqa", '{"question_id": 1, "caption": "x"}\n', "line 1: not an answer; wanted are the fields question_id and text"),
    "null": ("gqa", '{"question_id": "1", "text": null}\n', "line 1: the answer is null. Put the text there, or"),
    "not an object": ("gqa", '"x"\n', "line 1: not an answer"),
    "not a number": ("gqa", '{"question_id": "1", "text": NaN}\n', "line 1: the answer is null. Put the text there, or"),
    "no id": ("gqa", '{"question_id": null, "text": "x"}\n', "line 1: the id must be text or a number, not None"),
    "id": ("gqa", '{"question_id": "1", "text": "x"}\n{"question_id": [2], "text": "x"}\n', r"line 2: the id must be .*, not \[2\]"),
    "answers": ("gqa", '{"question_id": "1", "text": ["x"]}\n', r"line 1: the answer must be text, not \['x'\]"),
    "pope digit": ("pope", '{"question_id": "²", "text": "x"}\n', "line 1: no question of these annotations is '²'"),
    "empty": ("gqa", "\n", "there are no answers in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_answers_are_named(case, questions, tmp_path):
    name, content, message = BROKEN[case]
    write(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError, match=message):
        predictions.read(BENCHMARKS[name], questions(name), tmp_path / "x.jsonl")


@pytest.mark.parametrize("suffix", predictions._NOT_READ)
def test_kinds_of_files_that_are_not_read_are_named(suffix, questions, tmp_path):
    (tmp_path / f"x{suffix}").write_bytes(b"question_id,text\n1,yes\n")
    with pytest.raises(ValueError, match=f"answers are read from .jsonl, .json, .tsv and .xlsx, not from {suffix}; save them"):
        predictions.read(BENCHMARKS["gqa"], questions("gqa"), tmp_path / f"x{suffix}")


def test_a_file_of_mmes_that_is_not_utf_8_is_named(questions, tmp_path):
    write(tmp_path / "out/color.txt", "1.jpg\tIs it?\tYes\tOuí\n".encode("latin-1"))
    with pytest.raises(ValueError, match="color.txt: the file is neither UTF-8 text"):
        predictions.read(BENCHMARKS["mme"], questions("mme"), tmp_path / "out")


def test_records_of_an_excel_file_are_counted_with_the_empty_rows(questions, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.save(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match="there are no answers in it"):
        predictions.read(BENCHMARKS["mmbench"], questions("mmbench"), tmp_path / "x.xlsx")
    for row in (["index", "prediction"], [3, "A"], [], [4, "A"]):
        book.active.append(row)
    book.active["C5"] = "a note"
    book.save(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match="x.xlsx, record 4: the id must be text or a number, not None"):
        predictions.read(BENCHMARKS["mmbench"], questions("mmbench"), tmp_path / "x.xlsx")


def test_a_file_that_is_not_there(questions, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        predictions.read(BENCHMARKS["gqa"], questions("gqa"), tmp_path / "x.jsonl")
    write(tmp_path / "x.bin", b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="neither UTF-8 text nor an Excel file"):
        predictions.read(BENCHMARKS["gqa"], questions("gqa"), tmp_path / "x.bin")


def test_a_folder_for_a_benchmark_whose_answers_are_one_file(questions, tmp_path):
    asked = questions("gqa")
    with pytest.raises(ValueError, match="out: a folder; gqa's answers are one file: name it"):
        (tmp_path / "out").mkdir()
        predictions.read(BENCHMARKS["gqa"], asked, tmp_path / "out")


def test_popes_answers_are_found_by_their_ids_in_any_order(questions, tmp_path):
    asked, rows = questions("pope"), llava("pope")
    write(tmp_path / "x.jsonl", lines(rows))
    expected = predictions.read(BENCHMARKS["pope"], asked, tmp_path / "x.jsonl")
    for row in rows:
        del row["prompt"]
    write(tmp_path / "x.jsonl", lines(rows[::-1]))
    assert predictions.read(BENCHMARKS["pope"], asked, tmp_path / "x.jsonl") == expected
    write(tmp_path / "x.jsonl", lines(rows[1:]))
    with pytest.raises(ValueError, match="1 question of 6 has no answer, first 'adversarial/1'"):
        predictions.read(BENCHMARKS["pope"], asked, tmp_path / "x.jsonl")
    # Wrong whatever the label: POPE's rule reads "yes" out of nothing.
    for label, wrong in (("yes", "no"), ("no", "yes")):
        labelled = [replace(question, answer=label) for question in asked]
        assert predictions.read(BENCHMARKS["pope"], labelled, tmp_path / "x.jsonl", allow_missing=True)["adversarial/1"] == wrong
    write(tmp_path / "x.jsonl", lines([*rows, rows[0]]))
    with pytest.raises(ValueError, match="one answer too many to 'adversarial, line 1'"):
        predictions.read(BENCHMARKS["pope"], asked, tmp_path / "x.jsonl")
    write(tmp_path / "x.jsonl", lines([{**row, "question_id": row["question_id"] + 5000} for row in rows]))
    with pytest.raises(ValueError, match="no question of these annotations is 'adversarial, line 5001'"):
        predictions.read(BENCHMARKS["pope"], asked, tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["pope", "mme", "textvqa"])
def test_one_unknown_id_among_our_own_is_one(name, questions, tmp_path):
    """Although other programs name these questions otherwise."""
    asked = questions(name)
    rows = [{"question_id": q.id, "prompt": BENCHMARKS[name].prompt(q, "official"), "text": "x"} for q in asked]
    write(tmp_path / "x.jsonl", lines([*rows, {**rows[0], "question_id": "another"}]))
    with pytest.raises(
        ValueError, match=rf"1 answer of {len(asked) + 1} is to no question of these annotations, first 'another'"
    ):
        predictions.read(BENCHMARKS[name], asked, tmp_path / "x.jsonl")


@pytest.mark.parametrize("field", ["text", "prediction"])
def test_beside_the_models_answer_answer_is_the_right_one(field, questions, tmp_path):
    rows = [{"question_id": identity, "answer": "right", field: "the model's"} for identity in ("1", "2")]
    write(tmp_path / "x.jsonl", lines(rows))
    assert predictions.read(BENCHMARKS["gqa"], questions("gqa"), tmp_path / "x.jsonl") == dict.fromkeys(("1", "2"), "the model's")


@pytest.mark.parametrize(("name", "asked", "how"), [("textvqa", "textvqa-ocr", "with"), ("textvqa-ocr", "textvqa", "without")])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("small", ["", "mini-"])
def test_answers_with_ocr_words_are_not_those_without(name, asked, how, own, small, questions, tmp_path):
    """Whether the file has the ids of LLaVA, which are the pictures', or of evomoe."""
    rows = [{**row, "question_id": 34602 + number} if own else row for number, row in enumerate(llava(asked)[::-1])]
    write(tmp_path / "x.jsonl", lines(rows))
    message = rf"line 1: asked {how} OCR words, which is not {small}{name}: score it as {small}{asked}\."
    with pytest.raises(ValueError, match=message):
        predictions.read(BENCHMARKS[small + name], questions(name), tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["gqa", "sqa", "mmbench", "mini-mmbench"])
def test_answers_to_another_question_of_the_same_id_are_named(name, questions, tmp_path):
    kind = name.removeprefix("mini-")
    rows = llava(kind)
    rows[1]["prompt"] = rows[1]["prompt"].replace("Quoted", "Another").replace("Is it", "Was it").replace("What", "Where")
    write(tmp_path / "x.jsonl", lines(rows))
    message = (
        r"x.jsonl, line 2: asked '.*(Another|Was|Where).*', but question \w+ is .*(Quoted|Is|What).*the version and the split"
    )
    with pytest.raises(ValueError, match=message):
        predictions.read(BENCHMARKS[name], questions(kind), tmp_path / "x.jsonl", allow_missing=True)


def test_a_prompt_may_differ_in_spaces_capitals_and_what_stands_around(questions, tmp_path):
    rows = [
        {"question_id": "1", "prompt": "<|user|>\nQ: what  COLOR\nis it?\nA:", "text": "a"},
        {"question_id": "2", "prompt": [{"role": "user", "content": "a prompt that is no text is not looked at"}], "text": "b"},
    ]
    write(tmp_path / "x.jsonl", lines(rows))
    assert predictions.read(BENCHMARKS["gqa"], questions("gqa"), tmp_path / "x.jsonl") == {"1": "a", "2": "b"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unpacks", "it unpacks to 300 MB, and 100 MB are the most; save the table as .tsv"),
        ("wide", "it has more than 20,000,000 cells"),
    ],
)
def test_an_excel_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, questions, kind, message):
    pytest.importorskip("openpyxl")
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["index", "prediction"])
    book.active.append([1, "A"])
    book.save(tmp_path / "small.xlsx")
    with (
        zipfile.ZipFile(tmp_path / "small.xlsx") as small,
        zipfile.ZipFile(tmp_path / "x.xlsx", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in small.infolist():
            content = small.read(member)
            if member.filename == "xl/worksheets/sheet1.xml":
                if kind == "unpacks":
                    content += b" " * 300_000_000
                else:
                    start, end = content.split(b"</sheetData>")
                    rows = b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (n, n) for n in range(3, 1500))
                    content = (
                        start.replace(b'<dimension ref="A1:B2" />', b"").replace(b'<dimension ref="A1:B2"/>', b"")
                        + rows
                        + b"</sheetData>"
                        + end
                    )
            bomb.writestr(member.filename, content)
    with pytest.raises(ValueError, match="x.xlsx: the Excel file cannot be read: " + message):
        predictions.read(BENCHMARKS["mmbench"], questions("mmbench"), tmp_path / "x.xlsx")
