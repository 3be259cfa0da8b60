"""No sentence of the pages, of `--help` or of an error is longer than a reader can hold."""

import ast
from pathlib import Path

import pytest
from sentences import LONGEST, help_texts, paragraphs, sentences, words

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "log"  # stays as it was written
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def too_long(texts) -> list[str]:
    return [sentence for text in texts for sentence in sentences(text) if words(sentence) > LONGEST]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != LOG], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_of_a_page_is_long(page):
    assert too_long(paragraphs(page.read_text(encoding="utf-8"))) == []


def test_no_sentence_of_a_help_text_is_long():
    texts = list(help_texts((ROOT / "tests" / "cli" / "cli_surface.txt").read_text(encoding="utf-8")))
    assert "peak, after warm-up; cosine decay." in texts and "write every prompt as the model would see it, answer none, " in (
        "".join(texts)
    )
    assert too_long(texts) == []


def message(node: ast.expr) -> str:
    """The text of an error; what is filled in counts as one word."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
    return message(node.left) + message(node.right) if isinstance(node, ast.BinOp) else ""


def test_no_sentence_of_an_error_is_long():
    found = [
        message(argument)
        for file in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for argument in node.exc.args
    ]
    assert sum(" " in text for text in found) > 400
    assert too_long(found) == []


def test_what_is_prose_and_what_is_not():
    page = """# A heading of words that nobody counts

First one. Second, with `some code of many words` in
it. See [the page](page.md). notes.md says more; e.g. this. A third (see Fig. 2)! Is it? "Yes." No.

- an item
- another one
  over two lines: and so on

| a table | with words |
| --- | --- |
| that are. not | counted |

```
code
```

![no picture](x.png)
"""
    assert list(paragraphs(page)) == [
        "First one. Second, with `somecodeofmanywords` in it. See the page. notes.md says more; e.g. this. A third (see Fig. 2)! "
        'Is it? "Yes." No.',
        "an item",
        "another one over two lines: and so on",
    ]
    assert sentences(next(paragraphs(page))) == [
        "First one.",
        "Second, with `somecodeofmanywords` in it.",
        "See the page.",
        "notes.md says more; e.g. this.",
        "A third (see Fig. 2)!",
        "Is it?",
        '"Yes."',
        "No.",
    ]
    assert words("A loss, `of many` - words [0.1, 0.2] it is") == 9


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--stage0.data {None}|STR other data, for this stage. (default: None)", "other data, for this stage."),
        ("--num-experts INT E. Paper: 4. (default: 4)", "E. Paper: 4."),
        ("--dry-run, --no-dry-run say what would be run. (default: False)", "say what would be run."),
        ("--rows [STR [STR ...]] these rows only. (default: )", "these rows only."),
        ("{1a,1b,5} the paper's number. (required)", "the paper's number."),
        ("MODEL folder or hub name. (required)", "folder or hub name."),
        ("\u2022 train Train a model.", "train Train a model."),
        ("Score a model (LLaVA) on data.", "Score a model (LLaVA) on data."),
    ],
)
def test_the_text_of_an_option(line, text):
    assert list(help_texts(line)) == [text]
