"""The cure where only one of several settings may be given."""

from __future__ import annotations

from collections.abc import Sequence


def keep_one(unsetting: Sequence[str]) -> str:
    """The words to add, for each setting those that take it back: `a.b=null`, or several with spaces between."""
    if len(unsetting) == 2:
        return f"add {unsetting[0]}, or {unsetting[1]}"
    return f"add all but one of {', '.join(unsetting)}"
