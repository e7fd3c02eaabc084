"""The sizes that a teacher can be pruned to, their checks, and the architecture that follows. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider, explicit

_ALIGNED = 128  # what matrix units of GPUs like channels to be a multiple of
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Target sizes; None keeps the teacher's. All are global (unsharded)."""

    num_layers: int | None = None
    hidden_size: int | None = None
    ffn_hidden_size: int | None = None
    num_attention_heads: int | None = None
    num_query_groups: int | None = None

    def given(self) -> dict[str, int]:
        """Those that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def choices(teacher: GPTModelProvider, name: str) -> range:
    """The values that the size `name` of a student of `teacher` can have, ascending, the teacher's own the last.

    Hidden sizes stay multiples of the largest divisor that the teacher's has in common with 128, so a student is as
    well aligned as its teacher. Every query group keeps its keys and values and has as many heads as the others.
    """
    model = explicit(teacher)
    largest: int = getattr(model, name)
    if name == "num_query_groups":
        return range(largest, largest + 1)
    steps = {"num_layers": 1, "num_attention_heads": model.num_query_groups}
    step = steps.get(name) or math.gcd(largest, _ALIGNED)
    return range(step, largest + 1, step)


def size_problems(teacher: GPTModelProvider, sizes: Sizes) -> Iterator[str]:
    """Every size that cannot be had, with what can, and sizes that leave nothing to prune."""
    model = explicit(teacher)
    for name, value in sizes.given().items():
        possible = choices(teacher, name)
        if value not in possible:
            yield f"{_flag(name)} {value}: {_why(model, name, value)}; possible: {_listed(possible)}"
    if all(getattr(model, name) == value for name, value in sizes.given().items()):
        flags = ", ".join(_flag(field.name) for field in fields(Sizes) if field.name != "num_query_groups")
        yield f"nothing is to be pruned: give a smaller size by one or more of {flags}"


def pruned_architecture(teacher: GPTModelProvider, sizes: Sizes) -> GPTModelProvider:
    """The student that `teacher` becomes. Heads keep their width, so `kv_channels` stays."""
    given: dict[str, Any] = {**sizes.given(), "checkpoint": None, "hf_path": None}
    return replace(explicit(teacher), **given)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _why(model: GPTModelProvider, name: str, value: int) -> str:
    largest = getattr(model, name)
    if name == "num_query_groups":
        return f"query groups are not pruned, since their heads share keys and values, and the teacher has {largest}"
    if value > largest:
        return f"the teacher has {largest}, and pruning makes nothing larger"
    if value < 1:
        return "must be 1 or more"
    if name == "num_attention_heads":
        return f"heads must be a multiple of the teacher's {model.num_query_groups} query groups"
    return f"must be a multiple of {choices(model, name).step}, which the teacher's {largest} is too"


def _listed(possible: range) -> str:
    """All of a few values, or a rule for many."""
    if len(possible) <= _SHOWN:
        return ", ".join(map(str, possible))
    if possible.step == 1:
        return f"{possible[0]} to {possible[-1]}"
    return f"{possible[0]}, {possible[1]}, ... {possible[-1]}, multiples of {possible.step}"
