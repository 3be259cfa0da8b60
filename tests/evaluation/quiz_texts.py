"""Questions of five lengths, in words that the tiny tokenizer knows."""

TEXTS = [
    "what color is the shape ?", "is there a red circle ?", "what", "is there not a blue triangle ?", "red ?",
    "what is the shape ?", "no ?",
]  # fmt: skip
