"""Blends and splits: which tokenised files a run reads, in what proportion, and which of their documents a split has.

A blend is a list of path prefixes, `[data/a, data/b]`, or of weights and prefixes, `[0.7, data/a, 0.3, data/b]`. A
split is one to three shares separated by commas, `949,50,1`, for training, validation and test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.config.values import show
from megatron_kd.errors import ConfigError

SPLITS = ("train", "valid", "test")
BLENDS = ("data_path", *(f"{split}_data_path" for split in SPLITS))  # fields of the section `dataset`
Parsed = TypeVar("Parsed")
Part = tuple[float, float]  # where a split begins and ends, in fractions of a file's documents

_SHARE = re.compile(r"\s*(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Blend:
    """Path prefixes of tokenised files and their weights; `weights` None means in proportion to their sizes."""

    prefixes: list[str]
    weights: list[float] | None = None

    @property
    def packed_together(self) -> list[list[str]]:
        """The files of conversations that are packed as one: all of them or, with weights, each by itself."""
        return [[prefix] for prefix in self.prefixes] if self.weights else [self.prefixes]


@dataclass(frozen=True)
class Split:
    """The shares of the documents that train, valid and test have, in the order of `SPLITS`. They need no sum."""

    shares: tuple[float, float, float]

    def share(self, name: str) -> float:
        """The share of a split."""
        return self.shares[SPLITS.index(name)]

    def part(self, name: str) -> Part:
        """The part of each file's documents that a split has. It ends where it begins if its share is 0."""
        # Added up as megatron-core does, to the last bit: its samples are cut at these edges.
        total = self.shares[0] + self.shares[1] + self.shares[2]
        edges = [0.0]
        for share in self.shares:
            edges.append(edges[-1] + share / total)
        index = SPLITS.index(name)
        return edges[index], edges[index + 1]

    def __str__(self) -> str:
        # Without exponents, which megatron-core reads as further shares.
        return ",".join(f"{Decimal(repr(share)):f}".removesuffix(".0") for share in self.shares)


@dataclass(frozen=True)
class SplitData:
    """The data of the split `name`: a part of each file of a blend, which is the value of `field`."""

    name: str
    field: str
    blend: Blend
    part: Part


def parse_blend(items: Sequence[str | float], field: str) -> Blend | Problem:
    """Read the blend that is the value of `field`, or say what is wrong with it. Text that is a number is a weight."""

    def problem(why: str, cure: str) -> Problem:
        return Problem((Setting(field, show(items)),), why, cure)

    if not items:
        return problem("is empty", "list at least one data prefix")
    numbers = [_number(item) for item in items]
    if all(number is None for number in numbers):
        return Blend([str(item) for item in items])
    weights, prefixes = [number for number in numbers[::2] if number is not None], items[1::2]
    if len(weights) * 2 != len(items) or any(number is not None for number in numbers[1::2]):
        why = "must list prefixes, or a weight before every prefix: [0.7, data/a, 0.3, data/b]"
        return problem(why, "write a prefix that is a number as ./7")
    if not all(0 < weight < math.inf for weight in weights):
        return problem("has weights that are not finite numbers greater than 0", "leave out data of weight 0")
    if not math.isfinite(sum(weights)):
        return problem("has weights that do not add up to a finite number", "make them smaller: only ratios count")
    return Blend([str(prefix) for prefix in prefixes], weights)


def parse_split(text: str) -> Split | Problem:
    """Read the shares of `dataset.split`, or say what is wrong with them. Those that are not given are 0."""
    parts = text.split(",")
    shares = [float(part) for part in parts if _SHARE.fullmatch(part)]
    if not len(shares) == len(parts) <= len(SPLITS) or not 0 < sum(shares) < math.inf:
        why = "must be up to three finite numbers, 0 or greater and not all 0, for train, validation and test"
        return Problem((Setting("dataset.split", show(text)),), why, "write such as 949,50,1")
    train, valid, test = [*shares, 0.0, 0.0][: len(SPLITS)]
    return Split((train, valid, test))


def split_data(data: DatasetConfig, name: str) -> SplitData | None:
    """The data of a split: its part of `data_path` or, where that is not set, all of its own list.

    None where neither is set.

    Raises:
        ConfigError: a malformed blend or split.
    """
    shared = data.data_path is not None
    field = "data_path" if shared else f"{name}_data_path"
    items = getattr(data, field)
    if items is None:
        return None
    blend = required(parse_blend(items, f"dataset.{field}"))
    part = required(parse_split(data.split)).part(name) if shared else (0.0, 1.0)
    return SplitData(name, f"dataset.{field}", blend, part)


def required(parsed: Parsed | Problem) -> Parsed:
    """Return the parsed value.

    Raises:
        ConfigError: a problem instead.
    """
    if isinstance(parsed, Problem):
        raise ConfigError([parsed])
    return parsed


def _number(item: str | float) -> float | None:
    try:
        return float(item)
    except ValueError:
        return None
