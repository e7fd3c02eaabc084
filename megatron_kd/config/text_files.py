"""Which files are text to be tokenised, and what tells tokenised conversations; `data` says how they are read."""

from __future__ import annotations

# A line of `.txt` is a document, a line of the others an object that has one at `text`.
TEXT_FILES = (".txt", ".jsonl", ".json")

# The third file of conversations, beside `.bin` and `.idx`: one byte per token, 1 if the loss includes it.
LOSS_MASK = ".loss_mask.bin"


def is_text_file(path: str) -> bool:
    """Whether `path` is, by its name, text rather than the prefix of tokenised files."""
    return path.endswith(TEXT_FILES)
