"""Typos in the names of fields, and whether their error messages help."""

from __future__ import annotations

import random
import re
import string

_TOLD = re.compile(r"(?P<wrong>\S+): unknown key; did you mean (?P<meant>\S+)\?")


def slip(word: str, draw: random.Random) -> str:
    """`word` with one letter dropped, added, replaced or swapped with its neighbour."""
    while True:
        place, letter = draw.randrange(len(word) - 1), draw.choice(string.ascii_lowercase)
        head, tail = word[:place], word[place:]
        wrong = head + draw.choice([tail[1:], letter + tail, letter + tail[1:], tail[1] + tail[0] + tail[2:]])
        if wrong != word:
            return wrong


def suggests(line: str, wrong: str, key: str) -> bool:
    """Whether a message about `wrong` leads to `key`.

    In a file the part of `wrong` up to the slip is what is unknown, so the same part of `key` is what helps.
    """
    told = _TOLD.match(line)
    if told is None:
        return False
    if told["wrong"] == wrong:
        return told["meant"] == key
    rest = wrong.removeprefix(told["wrong"])
    return rest.startswith(".") and told["meant"] + rest == key
