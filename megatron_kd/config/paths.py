"""Fields that hold paths: which they are, what their author means, and what no path can be.

`~` is the home folder, as in a shell. Nothing else is filled in: a path is taken word for word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from megatron_kd.config.values import FieldPath

# Names of fields, in whatever section. A list holds paths, and weights between them.
_NAMES = frozenset(
    {
        *("text_path", "data_path", "train_data_path", "valid_data_path", "test_data_path", "path_to_cache"),
        *("tokenizer_model", "teacher_tokenizer_model", "pretrained_checkpoint", "checkpoint", "hf_path", "run_dir"),
    }
)
_LONGEST_NAME = 255  # bytes, on every file system that Linux trains on
_VARIABLE = re.compile(r"\$[A-Za-z_]\w*")


def is_path(field: FieldPath) -> bool:
    """Whether a field holds a path, or a list of them."""
    return field[-1] in _NAMES


def as_meant(value: Any) -> Any:
    """A value of such a field as text, with `~` as the home folder; other values are left alone."""
    if isinstance(value, list):
        return [as_meant(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value


def why_no_path(value: Any) -> tuple[str, str] | None:
    """Why a value of such a field cannot be a path, and the cure; None where it can be, or is not given."""
    return next((found for text in _texts(value) if (found := _why(text)) is not None), None)


def _texts(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item


def _why(text: str) -> tuple[str, str] | None:
    if not text.strip():
        return "is empty", "name a file or folder; . is the working directory"
    if bad := next((char for char in text if ord(char) < 32 or ord(char) == 127), None):
        what = {"\n": "a newline", "\0": "a zero byte"}.get(bad, f"the control character {bad!r}")
        return f"has {what} in it", "leave it out; in YAML, quote the path"
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split("/")):
        return f"has a name that is too long ({_LONGEST_NAME} bytes at most)", "name another file or folder"
    if text.startswith("~"):
        return f"no user {text[1:].partition('/')[0]} has a home folder", f"write the whole path, or ./{text}"
    if variable := _VARIABLE.search(text):
        return f"{variable[0]} is not filled in here", "write the value itself"
    return None
