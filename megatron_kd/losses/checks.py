"""Faults found on the device, reported with one wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_kd.errors import InputError, NumericalFault


def require(*conditions: tuple[Tensor, Exception]) -> None:
    """Raise the exception of the first condition (a bool scalar on the device) that is false; one host sync."""
    for true, (_, error) in zip(torch.stack([flag for flag, _ in conditions]).tolist(), conditions, strict=True):
        if not true:
            raise error


def finite(values: Tensor, what: str) -> tuple[Tensor, Exception]:
    """The condition, for `require`, that all of `values` are finite."""
    error = NumericalFault(f"{what} not finite: look at the step's inputs, learning rate and loss scale")
    return torch.isfinite(values).all(), error


def finite_divergence(student_lse: Tensor, teacher_lse: Tensor, value: Tensor) -> list[tuple[Tensor, Exception]]:
    """The conditions that both models' logits, seen through their log-sum-exps, and the divergence are finite."""
    return [
        finite(student_lse, "the student logits are"),
        finite(teacher_lse, "the teacher logits are"),
        finite(value, "the divergence is (a single infinite logit does this), or its logits are"),
    ]


def known_labels(holders: Tensor, keep: Tensor, vocab_size: int) -> tuple[Tensor, Exception]:
    """The condition that each label that counts is held by exactly one shard."""
    error = InputError(f"a label is outside [0, {vocab_size}) and is not the ignored label")
    return ((holders == 1) | ~keep).all(), error
