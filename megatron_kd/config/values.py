"""Fields and values as users write them."""

from __future__ import annotations

import re
from typing import Any

FieldPath = tuple[str, ...]  # the keys that lead to a field: `("model", "num_layers")`

_PLAIN_WORD = re.compile(r"[^\s'\"\[\]{}]+")


def dotted(path: FieldPath) -> str:
    """`("model", "num_layers")` as users write it: `model.num_layers`."""
    return ".".join(path)


def a_type(value: Any) -> str:
    """A value's type with its article: `an int`, `a str`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def show(value: Any) -> str:
    """A value as one would write it in YAML, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # A text that looks like something else is quoted, so that the message shows what it is.
        is_other = re.match(r"[-+.\d]|(null|true|false)$", value) or not value.isprintable()
        is_word = _PLAIN_WORD.fullmatch(value) and not is_other
        text = value if is_word else repr(value)
    elif isinstance(value, list):
        text = f"[{', '.join(show(v) for v in value)}]"
    else:
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
