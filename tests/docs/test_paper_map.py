"""Every equation of the paper has one file, no claim has two, and the map in docs/ is up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)

MAP = generate.DOCS / "paper-map.md"
EQUATIONS = {"all.py": "All.\n\nImplements: " + ", ".join(f"Eq. {n}" for n in range(1, 13)) + "."}


def test_the_map_is_up_to_date():
    assert MAP.read_text(encoding="utf-8") == generate.paper_map(generate.read_docstrings()), "run `make docs`"


def test_the_map_names_every_item_and_files_that_exist():
    text = MAP.read_text(encoding="utf-8")
    items = [*(f"Eq. {n}" for n in range(1, 13)), *(f"Table {n}" for n in range(1, 16)), *(f"Figure {n}" for n in range(1, 6))]
    for item in items:
        assert f"\n| {item} | " in text, item
    links = re.findall(r"\]\((\.\./[^)]+)\)", text)
    assert len(links) > 30 and all((ROOT / "docs" / link).is_file() for link in links)


def test_every_docstring_line_of_the_package_that_says_implements_is_a_module_s():
    """A claim elsewhere, in a class for example, would be overlooked."""
    for name, docstring in generate.read_docstrings().items():
        lines = (generate.SOURCE / name).read_text(encoding="utf-8").splitlines()
        claims = [line for line in lines if line.strip().startswith("Implements:")]
        assert set(claims) <= set(docstring.splitlines()), name


def test_an_equation_that_no_file_claims_is_an_error():
    with pytest.raises(ValueError, match="No file claims Eq. 7, Eq. 12"):
        generate.read_claims({"all.py": EQUATIONS["all.py"].replace("Eq. 7, ", "").replace(", Eq. 12.", ", Eq. 11 (again).")})


def test_a_part_of_an_equation_is_not_the_equation():
    with pytest.raises(ValueError, match="No file claims Eq. 1$|No file claims Eq. 1[.]"):
        generate.read_claims({"all.py": EQUATIONS["all.py"].replace("Eq. 1,", "Eq. 1 (half),")})


@pytest.mark.parametrize("claim", ["Eq. 3", "Table 4 (a)"])
def test_one_claim_has_one_file(claim):
    files = {**EQUATIONS, "first.py": "First.\n\nImplements: Table 4 (a).", "second.py": f"Second.\n\nImplements: {claim}."}
    with pytest.raises(ValueError, match=rf"{re.escape(claim)} is claimed by \w+.py and by second.py"):
        generate.read_claims(files)


def test_parts_of_one_item_may_have_files_of_their_own():
    files = {**EQUATIONS, "a.py": "A.\n\nImplements: Table 4 (a), Eq. 6 (tau).", "b.py": "B.\n\nImplements: Table 4 (b)."}
    claims = generate.read_claims(files)
    assert claims["Table 4"] == [("a", "a.py"), ("b", "b.py")] and claims["Eq. 6"] == [("", "all.py"), ("tau", "a.py")]
    text = generate.paper_map(files)
    assert "| Table 4 | designs of the router | b | [b.py](../src/evomoe/b.py) | B. |" in text
    assert "| Table 9 | sizes of the language model | | not yet | |" in text


@pytest.mark.parametrize(
    "line",
    ["Eq. 1", "the losses of Table 5.", "Eq. 5-8.", "Table 4 (c), (d).", "Eq. 1, and more.", "Eq. 1; Eq. 2.", "Figure 1a."],
)
def test_a_line_that_would_be_half_read_is_refused(line):
    with pytest.raises(ValueError, match="bad.py: .*must be claims such as"):
        generate.read_claims({**EQUATIONS, "bad.py": f"Bad.\n\nImplements: {line}"})


@pytest.mark.parametrize("item", ["Eq. 13", "Table 16", "Figure 7", "Section 9"])
def test_an_item_that_the_paper_lacks_is_refused(item):
    with pytest.raises(ValueError, match=f"the paper has no {item}"):
        generate.claims_of(f"Bad.\n\nImplements: {item} (x).")
