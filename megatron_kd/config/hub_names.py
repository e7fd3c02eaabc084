"""Paths that are not there, some of them names on the Hugging Face hub: how to get what they mean.

Nothing in this package downloads; the user does, with `hf download`.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Literal

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILES = re.compile(r".*\.(jsonl?|parquet|txt|py|ya?ml|jinja|model|safetensors|gguf|bin|idx)")
LIKE_A_HUB_NAME = "looks like a name on the Hugging Face hub, and nothing is downloaded here"
# Folders that people keep models and data in, and that may not be there yet.
_OF_ONES_OWN = frozenset(["models", "model", "runs", "checkpoints", "data", "datasets", "output", "outputs"])


def absent(path: str | Path, kind: Literal["model", "dataset"] = "model", what: str = "folder") -> tuple[str, str]:
    """Why a path that does not exist cannot be read, and the cure.

    Args:
        path: as the user wrote it.
        kind: of what it should hold.
        what: it should be.
    """
    text = str(path)
    option = " --repo-type dataset" if kind == "dataset" else ""
    if not looks_like_hub_name(text):
        return (
            f"there is no such {what}",
            f"download it first: `hf download NAME{option} --local-dir {shlex.quote(text)}`",
        )
    folder = f"{'models' if kind == 'model' else 'data'}/{text.partition('/')[2]}"
    return (
        f"there is no such {what}; it {LIKE_A_HUB_NAME}",
        f"run `hf download {text}{option} --local-dir {folder}` and give {folder}",
    )


def looks_like_hub_name(path: str | Path) -> bool:
    """Whether a path that does not exist looks like OWNER/NAME rather than a file or folder of the user's own."""
    text = str(path)
    owner = text.partition("/")[0]
    named = _NAME.fullmatch(text) is not None and _FILES.fullmatch(text.lower()) is None
    return named and owner not in _OF_ONES_OWN and not os.path.isdir(owner) and not os.path.exists(text)
