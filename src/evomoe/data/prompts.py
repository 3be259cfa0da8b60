"""The words in which benchmarks ask, and in which training on their form asks too. Needs neither torch nor transformers."""

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
OCR_MARK = "Reference OCR token:"
"""What stands before the words that an OCR program read in the picture."""
