"""The numbers that a step reports: sums over the unmasked tokens of its micro-batches, in one order.

Shapes: S sequence, B micro-batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_kd.distillation.balance import Losses
from megatron_kd.losses.faults import Faults, count_faults
from megatron_kd.models.micro_batch import MicroBatch

# Metrics of the logits besides their losses, in this order.
OBSERVED = ("teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement", "teacher_topk_mass")

REPORTED = (
    "tokens",
    "loss",
    "lm_loss",
    "logits_loss",
    "intermediate_loss",
    "lm_loss_weighted",
    "logits_loss_weighted",
    "intermediate_loss_weighted",
    *OBSERVED,
)

# A micro-batch's result: the total to differentiate [], the number of unmasked tokens [] int, and the sums of
# `REPORTED`, [len(REPORTED)] float64.
LossResult = tuple[Tensor, Tensor, Tensor]


class Observed(NamedTuple):
    """Metrics of the logits besides their loss, per token, [S, B]; None where not computed.

    Attributes:
        kl: KL(teacher || student) at temperature 1 (in evaluation).
        rank: how many ids the student puts before the teacher's first choice (in evaluation).
        teacher_mass: the teacher's probability of its top-k tokens (with `logit_kl_topk`).
    """

    kl: Tensor | None = None
    rank: Tensor | None = None
    teacher_mass: Tensor | None = None

    def sums(self, mask_SB: Tensor) -> Tensor:
        """Sums of `OBSERVED` over unmasked tokens, [len(OBSERVED)] float64."""
        top1, top5 = (None, None) if self.rank is None else (self.rank < 1, self.rank < 5)
        sums = torch.zeros(len(OBSERVED), dtype=torch.float64, device=mask_SB.device)
        for index, values_SB in enumerate((self.kl, top1, top5, self.teacher_mass)):
            if values_SB is not None:
                sums[index] = (values_SB * mask_SB).sum()
        return sums


def loss_result(total: Tensor, mask: Tensor, losses: Losses, weights: Losses, observed: Tensor) -> LossResult:
    """The result of a micro-batch.

    Args:
        total: [], to be differentiated.
        mask: [B, S] or [S, B].
        losses: sums over unmasked tokens.
        weights: of the losses in the total.
        observed: the sums of `OBSERVED`, [len(OBSERVED)] float64.
    """
    num_tokens, weighted = mask.sum(), losses.weighted(weights)
    values = [num_tokens, sum(weighted), *losses, *weighted]
    reported = torch.stack([torch.as_tensor(v, device=total.device).detach().double() for v in values])
    return total, num_tokens.int(), torch.cat((reported, observed))


class StepSums:
    """Sums that one step's forwards accumulate on this rank, besides the last stage's results; new for each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._faults: list[tuple[tuple[int, ...], Faults]] = []

    def faults(self, micro_batch: MicroBatch) -> Faults:
        """The counter in which the losses of a micro-batch record numerical faults."""
        faults = Faults()
        self._faults.append((micro_batch.sample_ids, faults))
        return faults

    def add_pair(self, index: int, loss: Tensor, weighted: Tensor) -> None:
        """Add a micro-batch's loss of layer pair `index`, [], raw and as weighted in the total."""
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        before = self._pairs.get(index, (zero, zero))
        self._pairs[index] = before[0] + loss.double(), before[1] + weighted.double()

    def reported(self) -> Tensor:
        """The sums of `REPORTED`, [len(REPORTED)] float64, as far as they are not the last stage's."""
        sums = torch.zeros(len(REPORTED), dtype=torch.float64, device=self._device)
        for _, (loss, weighted) in sorted(self._pairs.items()):
            sums[REPORTED.index("intermediate_loss")] += loss
            sums[REPORTED.index("intermediate_loss_weighted")] += weighted
            sums[REPORTED.index("loss")] += weighted
        return sums

    def faults_met(self) -> Tensor:
        """How often each of `FAULTS` was met, [len(FAULTS)] float64."""
        return count_faults([faults for _, faults in self._faults], self._device)

    def faulty_samples(self) -> list[int]:
        """The samples of the micro-batches in which one was met, ascending. Waits for the device."""
        return sorted({sample for samples, faults in self._faults if faults.any() for sample in samples})
