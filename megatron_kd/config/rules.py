"""Ranges that a number may be restricted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A condition on a value, as a predicate and in words."""

    holds: Callable[[Any], bool]
    words: str


POSITIVE = Rule(lambda v: v > 0, "must be greater than 0")
NOT_NEGATIVE = Rule(lambda v: v >= 0, "must be 0 or greater")
FRACTION = Rule(lambda v: 0 <= v < 1, "must be at least 0 and less than 1")
STEPS = Rule(lambda v: 0 < v < 2**31, "must be greater than 0 and less than 2^31")
EPOCHS = Rule(lambda v: 0 < v <= 1e6, "must be greater than 0 and at most 1e6")
SEED = Rule(lambda v: 0 <= v < 2**31, "must be at least 0 and less than 2^31")
TWO_OR_MORE = Rule(lambda v: v >= 2, "must be 2 or greater")
OF_HEAD = Rule(lambda v: 0 < v <= 1, "must be greater than 0 and at most 1")
