"""The distillation's criteria, in the form ModelOpt calls them: modules of (student output, teacher output).

Each returns one loss a token, [S, B]. Under sequence parallelism the output of a norm, and so its loss, covers
this rank's part of the sequence only. S sequence, B micro-batch, V vocabulary,
H student and G teacher hidden.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.loss import _Loss  # the type ModelOpt asks of a criterion

from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.pairs import LayerPair
from megatron_kd.losses.agreement import vocab_parallel_argmax
from megatron_kd.losses.divergence import vocab_parallel_divergence


class LogitsOptions(TypedDict):
    """The keyword arguments that say which divergence of two distributions is meant."""

    kind: str
    temperature: float
    temperature_squared: bool
    beta: float
    alpha: float
    vocab_size: int | None


def logits_options(kd: ModelOptDistillConfig, vocab_size: int | None) -> LogitsOptions:
    """The logit loss of `kd`, over the first `vocab_size` ids."""
    return LogitsOptions(
        kind=kd.logits_loss_kind,
        temperature=kd.logit_kl_temperature,
        temperature_squared=kd.temperature_squared,
        beta=kd.logits_loss_beta,
        alpha=kd.logits_loss_alpha,
        vocab_size=vocab_size,
    )


class LogitsDivergence(_Loss):
    """Divergence of the two output layers' distributions. ModelOpt wants "Logits" in the name."""

    def __init__(self, options: LogitsOptions, group: ProcessGroup) -> None:
        super().__init__()
        self._options, self._group = options, group
        self._agreement_SB: Tensor | None = None

    def forward(self, student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None]) -> Tensor:
        """Both are outputs of a ColumnParallelLinear: ([S, B, V] sharded over V, bias)."""
        student_SBV, teacher_SBV = student[0], teacher[0]
        if not torch.is_grad_enabled():
            self._agreement_SB = self._agreement(student_SBV, teacher_SBV)
        return vocab_parallel_divergence(student_SBV, teacher_SBV, group=self._group, **self._options)

    def take_agreement(self, like_SB: Tensor) -> Tensor:
        """Whether both models' likeliest tokens agree, [S, B] of 0 and 1; known in evaluation only, else 0."""
        agreement_SB, self._agreement_SB = self._agreement_SB, None
        return torch.zeros_like(like_SB) if agreement_SB is None else agreement_SB

    def _agreement(self, student_SBV: Tensor, teacher_SBV: Tensor) -> Tensor:
        ids = [
            vocab_parallel_argmax(logits, group=self._group, vocab_size=self._options["vocab_size"])
            for logits in (student_SBV, teacher_SBV)
        ]
        return (ids[0] == ids[1]).float()


class HiddenLoss(_Loss):
    """The loss of a layer pair; layers that put out a bias beside their output give a tuple."""

    def __init__(self, pair: LayerPair) -> None:
        super().__init__()
        self.projection, self._loss = pair.projection, pair.loss_per_token

    def forward(self, student: Tensor | tuple[Tensor, ...], teacher: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Of the student's [S, B, H] and the teacher's [S, B, G]; per token, [S, B]."""
        student_SBH, teacher_SBG = (x[0] if isinstance(x, tuple) else x for x in (student, teacher))
        if self.projection is not None:
            student_SBH = self.projection(student_SBH)
        return self._loss(student_SBH, teacher_SBG)
