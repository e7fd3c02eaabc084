"""Records of files that are made once: a JSON file beside them, written last, says what they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_kd.runtime.files import replace_text


def read_record(path: Path, made_of: dict[str, Any], sizes: Callable[[], dict[str, int]]) -> dict[str, Any] | None:
    """The record at `path`, if the files were made of `made_of` and are of their recorded sizes; else None.

    Args:
        path: of the record.
        made_of: what decides on the files' content.
        sizes: gives the files' sizes in bytes, or raises an OSError.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if made_of.items() <= record.items() and record["files"] == sizes() else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def tokenised_record(prefix: str | Path) -> Path:
    """The record of the files at `prefix` that a run's text was tokenised into."""
    return Path(f"{prefix}.tokenised.json")


def text_of_tokens(prefix: str) -> str | None:
    """The SHA-256 of the text that the files at `prefix` were made of; None where they are not a run's text."""
    try:
        record = json.loads(tokenised_record(prefix).read_text(encoding="utf-8"))
        return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(path: Path, made_of: dict[str, Any], sizes: dict[str, int], **about: Any) -> dict[str, Any]:
    """Write the record of files that are complete, with more `about` them, and return it."""
    record = {**made_of, **about, "files": sizes}
    replace_text(path, json.dumps(record, indent=2) + "\n")
    return record
