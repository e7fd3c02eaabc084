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
    numbers = [_number(item) for item in items]
    if all(number is None for number in numbers):
        return Blend([str(item) for item in items], None)
    weights, prefixes = [number for number in numbers[::2] if number is not None], items[1::2]
    if len(weights) * 2 != len(items) or any(number is not None for number in numbers[1::2]):
        raise ConfigError(["must list prefixes, or a weight before every prefix: [0.7, data/a, 0.3, data/b]"])
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(["has weights that are not greater than 0; leave such data out"])
    return Blend([str(prefix) for prefix in prefixes], weights)


def _number(item: str | float) -> float | None:
    try:
        return float(item)
    except ValueError:
        return None
