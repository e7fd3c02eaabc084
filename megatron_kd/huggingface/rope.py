"""Rotary embeddings by a `config.json`, as transformers 4 writes it (`rope_theta`, `rope_scaling`) or transformers 5
(`rope_parameters`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# The scaling of the frequencies that megatron-core has no arguments for.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings.

    Attributes:
        theta: the base of the frequencies.
        fraction: of a head's channels that are rotated.
        scaling: `rope_scaling`, or `rope_parameters` in its place; None where there is neither.
        kind: `rope_type`.
    """

    theta: Any
    fraction: Any
    scaling: Any
    kind: str


def rope_of(values: dict[str, Any]) -> Rope:
    """The rotary embeddings that the keys of a `config.json` mean; see `rope_problems`."""
    parameters = values.get("rope_parameters")
    newer = parameters if isinstance(parameters, dict) else {}
    scaling = newer or values.get("rope_scaling")
    return Rope(
        theta=newer.get("rope_theta", values.get("rope_theta", _DEFAULT_THETA)),
        fraction=newer.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)),
        scaling=scaling,
        kind=_kind(scaling),
    )


def rope_problems(values: dict[str, Any]) -> Iterator[str]:
    """Problems: embeddings that megatron-core would compute differently, and values that the file gives twice."""
    newer = values.get("rope_parameters")
    if not isinstance(newer, dict | None):
        yield f"config.json: rope_parameters={newer!r} must be an object; copy the file again"
    if isinstance(newer, dict) and any(isinstance(value, dict) for value in newer.values()):
        yield f"rope_parameters by type of layer ({', '.join(map(str, newer))}) are not supported, only one set for all"
        return
    rope = rope_of(values)
    if isinstance(newer, dict):
        yield from _given_twice(values, newer)
    if not _is_positive(rope.theta):
        yield f"config.json: rope_theta={rope.theta!r} must be a number greater than 0; copy the file again"
    if rope.fraction != 1.0:
        yield f"partial_rotary_factor={rope.fraction} is not supported, only 1.0"
    yield from _scaling_problems(rope)


def _given_twice(values: dict[str, Any], newer: dict[str, Any]) -> Iterator[str]:
    older: dict[str, Any] = {"rope_theta": values.get("rope_theta")}
    if isinstance(values.get("rope_scaling"), dict):
        older |= values["rope_scaling"]
    for key, value in older.items():
        if value is not None and key in newer and newer[key] != value:
            yield f"{key}={value!r}, but rope_parameters.{key}={newer[key]!r}; delete the one that is not the model's"


def _scaling_problems(rope: Rope) -> Iterator[str]:
    if rope.kind not in ("default", "llama3"):
        yield f"rope_scaling of type {rope.kind!r} is not supported; supported are llama3 and none"
    elif rope.kind == "llama3":
        for key, value in LLAMA3_SCALING.items():
            if rope.scaling.get(key) != value:
                yield f"rope_scaling.{key}={rope.scaling.get(key)!r}: megatron-core computes with {value} only"
        if not _is_positive(rope.scaling.get("factor")):
            yield f"rope_scaling.factor={rope.scaling.get('factor')!r} must be a number greater than 0"
    elif isinstance(rope.scaling, dict) and rope.scaling.get("factor", 1.0) != 1.0:
        yield (
            f"rope_scaling.factor={rope.scaling['factor']!r} without a scaling; add its rope_type, such as llama3, or "
            "delete the factor"
        )


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _kind(scaling: Any) -> str:
    if not isinstance(scaling, dict):
        return "default" if scaling is None else str(scaling)
    return str(scaling.get("rope_type", scaling.get("type", "default")))
