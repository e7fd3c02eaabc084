"""The distillation's criteria, in the form ModelOpt calls them: modules of (student output, teacher output).

Each returns one loss a token, [S, B]. Under sequence parallelism the output of a norm, and so its loss, covers
this rank's part of the sequence only. S sequence, B micro-batch, V vocabulary,
H student and G teacher hidden.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.loss import _Loss  # the type ModelOpt asks of a criterion

from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.pairs import LayerPair
from megatron_kd.losses.agreement import vocab_parallel_argmax
from megatron_kd.losses.checks import Faults
from megatron_kd.losses.divergence import vocab_parallel_divergence
from megatron_kd.losses.topk import vocab_parallel_topk_divergence


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


class Observed(NamedTuple):
    """What is seen of the logits beside their loss, per token, [S, B]; 0 where it was not looked for.

    `agreement`: whether both models' likeliest tokens are one (in evaluation). `teacher_mass`: the teacher's
    probability of its top-k tokens (with `logit_kl_topk`).
    """

    agreement: Tensor
    teacher_mass: Tensor


class LogitsDivergence(_Loss):
    """Divergence of the two output layers' distributions. ModelOpt wants "Logits" in the name."""

    def __init__(
        self, kd: ModelOptDistillConfig, vocab_size: int | None, group: ProcessGroup, faults: Faults | None
    ) -> None:
        """`vocab_size` counts the ids that both models have; `faults` as in `vocab_parallel_divergence`."""
        super().__init__()
        self._options, self._group, self._faults = logits_options(kd, vocab_size), group, faults
        self._topk, self._tail = kd.logit_kl_topk, kd.logit_kl_topk_tail
        self._observed: Observed | None = None

    def forward(self, student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None]) -> Tensor:
        """Both are outputs of a ColumnParallelLinear: ([S, B, V] sharded over V, bias)."""
        student_SBV, teacher_SBV = student[0], teacher[0]
        losses_SB, mass_SB = self._losses(student_SBV, teacher_SBV)
        agreement_SB = torch.zeros_like(mass_SB)
        if not torch.is_grad_enabled():
            agreement_SB = self._agreement(student_SBV, teacher_SBV)
        self._observed = Observed(agreement_SB, mass_SB)
        return losses_SB

    def take_observed(self) -> Observed:
        """What the last forward saw."""
        assert self._observed is not None, "no forward since the last call"
        observed, self._observed = self._observed, None
        return observed

    def _losses(self, student_SBV: Tensor, teacher_SBV: Tensor) -> tuple[Tensor, Tensor]:
        if self._topk is None:
            losses_SB = vocab_parallel_divergence(
                student_SBV, teacher_SBV, group=self._group, faults=self._faults, **self._options
            )
            return losses_SB, torch.zeros_like(losses_SB)
        return vocab_parallel_topk_divergence(
            student_SBV,
            teacher_SBV,
            self._topk,
            tail=self._tail,
            temperature=self._options["temperature"],
            temperature_squared=self._options["temperature_squared"],
            group=self._group,
            vocab_size=self._options["vocab_size"],
            faults=self._faults,
        )

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
