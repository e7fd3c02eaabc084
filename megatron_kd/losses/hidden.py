"""Losses between two hidden states, per token over the last dimension.

The teacher's state gets no gradient. Arithmetic is float32 (float64 for float64 states); the student's gradient has
the student's dtype. The hidden dimension must be whole: these losses know no process group, since hidden states are
sharded along the sequence, if at all.

Shapes: H hidden size, the same on both sides (project before, where sizes differ).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from megatron_kd.errors import InputError
from megatron_kd.losses.shard import compute_dtype


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both hidden states [..., H] in the dtype of the arithmetic, the teacher's without a gradient."""
    if student.shape != teacher.shape:
        raise InputError(
            f"student hidden states {tuple(student.shape)} and teacher hidden states {tuple(teacher.shape)} must have "
            "one shape: give the pair a projection to the teacher's size"
        )
    dtype = compute_dtype(student)
    return student.to(dtype), teacher.detach().to(dtype)


def cosine_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-8) -> Tensor:
    """1 - cos(student, teacher), the loss of ModelOpt's `HiddenStateCosineLoss`, for each token.

    Args:
        student: [..., H].
        teacher: [..., H].
        eps: floor of each norm, so that a zero state has loss 1 and gradient zero.

    Returns:
        [...] in [0, 2]; float32 (float64 for float64 states).

    Raises:
        InputError: if the shapes differ.
    """
    student, teacher = _pair(student, teacher)
    return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=eps)


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over H of (student - teacher)^2: [..., H] and [..., H] to [...]; InputError if the shapes differ."""
    student, teacher = _pair(student, teacher)
    return (student - teacher).square().mean(-1)


def smooth_l1_loss(student: Tensor, teacher: Tensor, *, threshold: float = 1.0) -> Tensor:
    """Mean over H of the Huber-like loss of Girshick 2015 (Fast R-CNN), equation 3.

    d^2 / (2 * threshold) where |d| < threshold, |d| - threshold / 2 elsewhere, d = student - teacher.

    Args:
        student: [..., H].
        teacher: [..., H].
        threshold: where the square turns into the absolute value; positive.

    Returns:
        [...]; float32 (float64 for float64 states).

    Raises:
        InputError: if the shapes differ, or the threshold is not positive.
    """
    if not threshold > 0:
        raise InputError(f"threshold={threshold} must be positive")
    student, teacher = _pair(student, teacher)
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=threshold).mean(-1)


HIDDEN_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_loss,
    "mse": mse_loss,
    "smooth_l1": smooth_l1_loss,
}
"""The losses by the name a configuration gives them."""
