"""Tiny random models of real transformers classes, built offline, and all that a run needs around them."""

from tiny.families import (
    FAMILIES,
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    QUICK,
    VOCABULARY,
    inputs_for,
    make,
    make_language_model,
    make_llava,
)
from tiny.workspace import make_processor, make_records, make_tokenizer, write_workspace

__all__ = [
    "FAMILIES",
    "IMAGE_TOKEN",
    "IMAGE_TOKENS",
    "QUICK",
    "VOCABULARY",
    "inputs_for",
    "make",
    "make_language_model",
    "make_llava",
    "make_processor",
    "make_records",
    "make_tokenizer",
    "write_workspace",
]
