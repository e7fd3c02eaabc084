"""Which files are text to be tokenised; `data.documents` says how they are read."""

from __future__ import annotations

# A line of `.txt` is a document, a line of the others an object that has one at `text`.
TEXT_FILES = (".txt", ".jsonl", ".json")


def is_text_file(path: str) -> bool:
    """Whether `path` is, by its name, text rather than the prefix of tokenised files."""
    return path.endswith(TEXT_FILES)
