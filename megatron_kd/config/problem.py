"""How a problem is written: the fields with their values, then why they cannot be, then the cure."""

from __future__ import annotations

from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.values import show


def value_of(cfg: ConfigContainer, name: str) -> Any:
    """The value of a field by its dotted name."""
    value: Any = cfg
    for part in name.split("."):
        value = getattr(value, part)
    return value


def line(cfg: ConfigContainer, names: str, why: str) -> str:
    """One problem, `a.b=1, c.d=2: why`, for the fields in `names`, parted by spaces."""
    return f"{', '.join(f'{name}={show(value_of(cfg, name))}' for name in names.split())}: {why}"


def divides(divisor: int, value: int) -> bool:
    """Whether `value` is a multiple of `divisor`; true if either is not positive, which `ranges` reports."""
    return divisor < 1 or value < 1 or value % divisor == 0
