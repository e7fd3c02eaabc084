"""What the numbers of a loss must be, and what happens where they are not.

A loss called on its own raises at once, which waits for the device. In a step a rank that raises alone leaves the
others waiting for it until a timeout, so there the losses note what they find in `Faults` and go on; whoever runs the
step adds up the counts of all ranks and lets all of them raise at the same step (`raise_faults`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from megatron_kd.errors import InputError, NumericalFault

Fault = Literal["student", "teacher", "divergence", "label"]
FAULTS: tuple[Fault, ...] = ("student", "teacher", "divergence", "label")

Condition = tuple[Tensor, Fault]  # a bool scalar on the device, and what is wrong where it is false

_INPUTS = "look at the step's inputs, learning rate and loss scale"
_ERRORS: dict[Fault, tuple[type[Exception], str]] = {
    "student": (NumericalFault, f"the student logits are not finite: {_INPUTS}"),
    "teacher": (
        NumericalFault,
        "the teacher logits are not finite: look at the teacher's weights and precision, and at the step's inputs",
    ),
    "divergence": (
        NumericalFault,
        f"the divergence is not finite, though both log-sum-exps are (one logit of -inf does this): {_INPUTS}",
    ),
    "label": (
        InputError,
        "a label is outside the student's vocabulary and is not the ignored label: are the data of another tokenizer?",
    ),
}


class Faults:
    """How often each of `FAULTS` was met since the last `take`, counted on the device, and in which micro-batches."""

    def __init__(self, device: torch.device):
        self._counts = torch.zeros(len(FAULTS), dtype=torch.float64, device=device)
        self._micro_batch = 0
        self._noted: list[tuple[int, Tensor]] = []  # since the last `take`
        self._taken: list[tuple[int, Tensor]] = []  # before it

    def begin(self, micro_batch: int) -> None:
        """What is noted from now on is of this micro-batch."""
        self._micro_batch = micro_batch

    def note(self, conditions: Sequence[Condition]) -> None:
        """Count the conditions that are false; the device is not waited for."""
        for true, fault in conditions:
            self._counts[FAULTS.index(fault)] += ~true
            self._noted.append((self._micro_batch, true))

    def take(self) -> Tensor:
        """The counts, [len(FAULTS)] of float64, which start again from 0."""
        counts, self._counts = self._counts, torch.zeros_like(self._counts)
        self._taken, self._noted = self._noted, []
        return counts

    def culprits(self) -> list[int]:
        """The micro-batches, ascending, in which what was last taken was met on this rank. Waits for the device."""
        return sorted({micro_batch for micro_batch, true in self._taken if not true})


def require(conditions: Sequence[Condition], faults: Faults | None = None) -> None:
    """Note the conditions that are false in `faults`; without it raise now, after one wait for the device.

    Raises:
        NumericalFault: logits or a divergence that are not finite; the message says whose.
        InputError: a label that is no id.
    """
    if faults is not None:
        faults.note(conditions)
        return
    met = torch.stack([true for true, _ in conditions]).tolist()
    raise_faults([fault for true, (_, fault) in zip(met, conditions, strict=True) if not true])


def raise_faults(met: Sequence[Fault], where: str = "") -> None:
    """Raise what `met` says is wrong; nothing where it is empty.

    Logits come first, since all that is computed from them is wrong too.

    Args:
        met: the faults, in any order.
        where: what the message begins with.
    """
    for group in (("student", "teacher"), ("divergence",), ("label",)):
        found = [_ERRORS[fault] for fault in FAULTS if fault in group and fault in met]
        if found:
            raise found[0][0](where + "; ".join(text for _, text in found))


def finite(values: Tensor, fault: Fault) -> Condition:
    """The condition that all of `values` are finite."""
    return torch.isfinite(values).all(), fault


def finite_divergence(student_lse: Tensor, teacher_lse: Tensor, value: Tensor) -> list[Condition]:
    """The conditions that both models' logits, seen through their log-sum-exps, and the divergence are finite."""
    return [finite(student_lse, "student"), finite(teacher_lse, "teacher"), finite(value, "divergence")]


def known_labels(holders: Tensor, keep: Tensor) -> Condition:
    """The condition that each label that counts is held by exactly one shard."""
    return ((holders == 1) | ~keep).all(), "label"


def one_shape(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits of both models whose shards cannot be compared slot by slot.

    Raises:
        InputError: the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} must have "
            "one shape, or a rank's shards hold different ids: pad both heads to one width, and give the number of "
            "shared ids as vocab_size"
        )
