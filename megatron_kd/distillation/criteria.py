"""The distillation's criteria, in the form ModelOpt calls them: modules of (student output, teacher output).

Each returns one loss a token, [S, B]. Under sequence parallelism the output of a norm, and so its loss, covers
this rank's part of the sequence only. S sequence, B micro-batch, V vocabulary,
H student and G teacher hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.loss import _Loss  # the type ModelOpt asks of a criterion

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.distillation.pairs import LayerPair
from megatron_kd.losses.faults import Faults
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.materialised import materialised_divergence
from megatron_kd.losses.shard import Sharding
from megatron_kd.losses.top_choice import vocab_parallel_choice_rank
from megatron_kd.losses.topk import topk_loss

# What is reported of the logits beside their losses, in this order.
OBSERVED = ("teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement", "teacher_topk_mass")


class Observed(NamedTuple):
    """What is seen of the logits beside their loss, per token, [S, B]; None where it was not looked for.

    Attributes:
        kl: KL(teacher || student) at temperature 1 (in evaluation).
        rank: how many ids the student puts before the teacher's first choice (in evaluation).
        teacher_mass: the teacher's probability of its top-k tokens (with `logit_kl_topk`).
    """

    kl: Tensor | None = None
    rank: Tensor | None = None
    teacher_mass: Tensor | None = None

    def sums(self, mask_SB: Tensor) -> Tensor:
        """Sums of `OBSERVED` over unmasked tokens, [4] of float64."""
        top1, top5 = (None, None) if self.rank is None else (self.rank < 1, self.rank < 5)
        sums = torch.zeros(len(OBSERVED), dtype=torch.float64, device=mask_SB.device)
        for index, values_SB in enumerate((self.kl, top1, top5, self.teacher_mass)):
            if values_SB is not None:
                sums[index] = (values_SB * mask_SB).sum()
        return sums


class LogitsDivergence(_Loss):
    """Divergence of the two output layers' distributions. ModelOpt wants "Logits" in the name."""

    def __init__(
        self, kd: ModelOptDistillConfig, vocab_size: int | None, group: ProcessGroup, faults: Faults | None
    ) -> None:
        """`vocab_size` counts the ids that both models have; `faults` as in `materialised_divergence`."""
        super().__init__()
        self._divergence, self._truncation = kd.divergence, kd.truncation
        self._sharding: Sharding = {"group": group, "vocab_size": vocab_size}
        self._faults = faults
        self._observed: Observed | None = None

    def forward(self, student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None]) -> Tensor:
        """Both are outputs of a ColumnParallelLinear: ([S, B, V] sharded over V, bias)."""
        student_SBV, teacher_SBV = student[0], teacher[0]
        losses_SB, mass_SB = self._losses(student_SBV, teacher_SBV)
        self._observed = Observed(teacher_mass=mass_SB)
        if not torch.is_grad_enabled():
            self._observed = self._evaluated(student_SBV, teacher_SBV)._replace(teacher_mass=mass_SB)
        return losses_SB

    def take_observed(self) -> Observed:
        """What the last forward saw."""
        assert self._observed is not None, "no forward since the last call"
        observed, self._observed = self._observed, None
        return observed

    def _losses(self, student_SBV: Tensor, teacher_SBV: Tensor) -> tuple[Tensor, Tensor | None]:
        divergence, faults, sharding = self._divergence, self._faults, self._sharding
        if self._truncation is None:
            losses_SB = materialised_divergence(student_SBV, teacher_SBV, divergence, faults=faults, **sharding)
            return losses_SB, None
        return topk_loss(student_SBV, teacher_SBV, self._truncation, divergence, faults=faults, **sharding)

    def _evaluated(self, student_SBV: Tensor, teacher_SBV: Tensor) -> Observed:
        kl_SB = materialised_divergence(student_SBV, teacher_SBV, Divergence(), faults=self._faults, **self._sharding)
        return Observed(kl_SB, vocab_parallel_choice_rank(student_SBV, teacher_SBV, **self._sharding))


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
