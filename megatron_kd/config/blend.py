"""Blends: lists of data prefixes, with or without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_kd.errors import ConfigError


@dataclass(frozen=True)
class Blend:
    """Data prefixes and their weights; `weights` None means in proportion to their sizes."""

    prefixes: list[str]
    weights: list[float] | None


def parse_blend(items: Sequence[str | float]) -> Blend:
    """Read `[prefix, ...]` or `[weight, prefix, weight, prefix, ...]`.

    Raises:
        ConfigError: what is wrong with the list, in one line.
    """
    if not items:
        raise ConfigError(["is empty; list at least one data prefix"])
    if all(isinstance(item, str) for item in items):
        return Blend([str(item) for item in items], None)
    weights, prefixes = items[::2], items[1::2]
    if len(items) % 2 or any(isinstance(w, str) for w in weights) or not all(isinstance(p, str) for p in prefixes):
        raise ConfigError(["must list prefixes, or a weight before every prefix: [0.7, data/a, 0.3, data/b]"])
    numbers = [float(weight) for weight in weights]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ConfigError(["has weights that are not greater than 0; leave such data out"])
    return Blend([str(prefix) for prefix in prefixes], numbers)
