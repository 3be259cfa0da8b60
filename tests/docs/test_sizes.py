"""How much there is to read: files stay short, and the papers' cores within what one reads at a sitting."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "evomoe"

LONGEST_FILE = 400

EVOMOE = 1200
"""Code lines for what the paper EvoMoE describes."""
EVOMOE_FILES = (
    "model/configuration.py",
    "model/modality.py",
    "model/forward_pass.py",
    "model/routing.py",
    "model/experts.py",
    "model/block.py",
    "model/sparse_model.py",
    *(f"model/routers/{name}.py" for name in ("__init__", "router", "float32", "linear", "modality", "shared", "dtr")),
    "conversion/expert_init/*.py",
    *(f"model/aux_losses/{name}.py" for name in ("__init__", "aux_loss", "balance", "contrastive", "local")),
    "training/evolution.py",
    "conversion/upcycling.py",
)

ANYEXPERTS = 450
"""Code lines for AnyExperts and the routers that it is compared with."""
ANYEXPERTS_FILES = (
    "recipe/anyexperts_options.py",
    *(f"model/routers/{name}.py" for name in ("anyexperts", "choice", "virtual", "virtual_router", "top_p", "zero_computation")),
    "model/aux_losses/budget.py",
    "model/aux_losses/importance.py",
)

BESIDE = 365
"""Code lines of what the core leans on: folders, several processes, models that were sparse before, options as data, gradients."""
BESIDE_FILES = (
    "model/router_gradient.py",
    "conversion/upcycled_folder.py",
    "model/saving.py",
    "training/sharding.py",
    "model/aux_losses/over_processes.py",
    "model/stacked_experts.py",
    "model/attached_block.py",
    "recipe/router_options.py",
    "recipe/init_options.py",
)

FAST = 120
"""Code lines of other ways to compute the same, which are there for speed alone."""
FAST_FILES = (
    "model/grouped_experts.py",
    "model/fixed_shapes.py",
    "model/kept.py",
    "model/one_token.py",
    "model/without_waiting.py",
)

_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> int:
    """The lines with code on them: no blank ones, no comments, no docstrings of modules, classes, functions or values."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, node.end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - told)


def sizes_of(patterns: tuple[str, ...]) -> dict[str, int]:
    """Code lines by file; every pattern must find one."""
    sizes = {}
    for pattern in patterns:
        found = sorted(PACKAGE.glob(pattern))
        assert found, f"there is no {pattern}"
        sizes |= {str(file.relative_to(PACKAGE)): code_lines(file.read_text(encoding="utf-8")) for file in found}
    return sizes


def listed(sizes: dict[str, int]) -> str:
    """The largest first."""
    return "\n".join(f"{size:5} {file}" for file, size in sorted(sizes.items(), key=lambda one: -one[1]))


def test_the_lines_that_count():
    source = '''"""What a module is.

In three lines."""
import os  # counts

# a comment


def function(
    argument,
):
    """Says what."""
    text = """two
lines"""
    return text


VALUE = 1
"""What it is."""
'''
    assert code_lines(source) == 8


def test_the_paper_s_core_is_read_at_a_sitting():
    sizes = sizes_of(EVOMOE_FILES)
    assert sum(sizes.values()) <= EVOMOE, listed(sizes)


def test_anyexperts_and_its_rivals_have_a_budget_of_their_own():
    sizes = sizes_of(ANYEXPERTS_FILES)
    assert sum(sizes.values()) <= ANYEXPERTS, listed(sizes)


def test_what_the_core_leans_on_stays_small():
    """Not part of what a paper describes; counted, so that no core becomes small by moving out."""
    sizes = sizes_of(BESIDE_FILES)
    assert sum(sizes.values()) <= BESIDE, listed(sizes)


def test_what_is_there_for_speed_stays_small():
    sizes = sizes_of(FAST_FILES)
    assert sum(sizes.values()) <= FAST, listed(sizes)


def test_no_file_is_too_long():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert not {file: length for file, length in lengths.items() if length > LONGEST_FILE}
