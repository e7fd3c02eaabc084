"""Numerical faults of a loss, non-finite values and invalid labels: detected, counted and raised.

A loss called on its own raises at once, which waits for the device. In a training step, a rank that raises alone
leaves the others waiting for it until a timeout. There the losses count their faults in `Faults` and continue; the
step sums the counts over all ranks, and all ranks raise at the same step (`raise_faults`).

Shapes: N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from megatron_kd.errors import InputError, NumericalFault

Fault = Literal["student", "teacher", "divergence", "label"]
FAULTS: tuple[Fault, ...] = ("student", "teacher", "divergence", "label")

Condition = tuple[Tensor, Fault]  # a bool scalar on the device, and the fault if it is false

_INPUTS = "check the step's inputs, learning rate and loss scale"
_ERRORS: dict[Fault, tuple[type[Exception], str]] = {
    "student": (NumericalFault, f"the student logits are not finite: {_INPUTS}"),
    "teacher": (
        NumericalFault,
        "the teacher logits are not finite: check the teacher's weights and precision, and the step's inputs",
    ),
    "divergence": (
        NumericalFault,
        f"the divergence is not finite, though both log-sum-exps are (one logit of -inf does this): {_INPUTS}",
    ),
    "label": (
        InputError,
        "a label is outside the student's vocabulary and is not the ignored label: was the data tokenised by another "
        "tokenizer?",
    ),
}


class Faults:
    """The conditions on the numbers of one micro-batch's losses, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self.conditions: list[Condition] = []

    def note(self, conditions: Sequence[Condition]) -> None:
        """Keep `conditions`, without waiting for the device."""
        self.conditions.extend(conditions)

    def any(self) -> bool:
        """Whether one of them is false. Waits for the device."""
        return any(not true for true, _ in self.conditions)


def count_faults(several: Iterable[Faults], device: torch.device) -> Tensor:
    """How often each of `FAULTS` occurred, [len(FAULTS)]; float64, to be summed with a step's losses."""
    counts = torch.zeros(len(FAULTS), dtype=torch.float64, device=device)
    for faults in several:
        for true, fault in faults.conditions:
            counts[FAULTS.index(fault)] += ~true
    return counts


def require(conditions: Sequence[Condition], faults: Faults | None = None) -> None:
    """Count the conditions that are false in `faults`; without it, raise now, after one wait for the device.

    Raises:
        NumericalFault: non-finite logits or divergence; the message says whose.
        InputError: an invalid label.
    """
    if faults is not None:
        faults.note(conditions)
        return
    met = torch.stack([true for true, _ in conditions]).tolist()
    raise_faults([fault for true, (_, fault) in zip(met, conditions, strict=True) if not true])


def raise_faults(met: Sequence[Fault], where: str = "", sample_ids: Sequence[int] = ()) -> None:
    """Raise the error of the faults in `met`, if there are any.

    Logits come first: everything computed from them is wrong too.

    Args:
        met: the faults, in any order.
        where: the beginning of the message.
        sample_ids: the samples of this rank that they were met in, for a NumericalFault to carry.
    """
    for group in (("student", "teacher"), ("divergence",), ("label",)):
        found = [_ERRORS[fault] for fault in FAULTS if fault in group and fault in met]
        if found:
            kind, text = found[0][0], where + "; ".join(text for _, text in found)
            raise NumericalFault(text, sample_ids) if kind is NumericalFault else kind(text)


def finite(values: Tensor, fault: Fault) -> Condition:
    """The condition that all of `values`, of any shape, are finite."""
    return torch.isfinite(values).all(), fault


def finite_divergence(student_lse: Tensor, teacher_lse: Tensor, value: Tensor) -> list[Condition]:
    """The conditions that both models' logits and the divergence are finite; all arguments are [N].

    The logits are checked by their log-sum-exps, N numbers in place of N x V, which are equal on every rank: a NaN or
    infinite logit makes its log-sum-exp non-finite, except for a single -inf, which makes the divergence non-finite.
    """
    return [finite(student_lse, "student"), finite(teacher_lse, "teacher"), finite(value, "divergence")]


def known_labels(holders: Tensor, keep: Tensor) -> Condition:
    """The condition that each label is a valid id or the ignored label; both arguments are [N].

    Args:
        holders: number of shards that hold the label, 1 for a valid id.
        keep: whether the label is not the ignored one.
    """
    return ((holders == 1) | ~keep).all(), "label"
