"""ModelOpt's own step: the losses of all outputs that it captured on the last stage, weighed by their own ratios.

Shapes: S sequence, B micro-batch, H student hidden, G teacher hidden, V vocabulary. Under sequence parallelism the
output of a norm, and so its loss, covers this rank's part of the sequence only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss  # the type ModelOpt asks of a criterion

from megatron_kd.distillation.balance import Balancer, Losses, balanced
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.logits import ComparedLogits, lm_loss
from megatron_kd.distillation.pairs import LayerPair
from megatron_kd.distillation.report import LossResult, Observed, StepSums, loss_result
from megatron_kd.losses.faults import Faults
from megatron_kd.models.gpt import Headed, hidden_states_of
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.modelopt import mtd
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Targets


class ModelOptDistillation:
    """See `Objective`.

    Args:
        head: the student's last stage, whose criteria are a `LogitsCriterion` and then `HiddenCriterion`s; None on the
            other stages.
        balancer: does not weigh here, but its state is that of any balancer.
        layout: the student's.
        in_flight: where the models' parts find the forward.
    """

    def __init__(
        self, head: mtd.DistillationModel | None, balancer: Balancer, layout: Layout, in_flight: InFlight[Forward]
    ) -> None:
        self.balancer, self._layout, self._in_flight = balancer, layout, in_flight
        if head is not None:
            head.head_function = self._losses
            head.teacher_model.head_function = _logits

    def forward(self, micro_batch: MicroBatch, targets: Targets, sums: StepSums) -> AbstractContextManager[None]:
        """See `Objective`. The weights of a micro-batch follow from its losses."""
        unknown = Losses(0.0, 0.0, 0.0)
        return self._in_flight.holding(Forward(micro_batch, targets, unknown, sums, sums.faults(micro_batch)))

    def _losses(self, model: mtd.DistillationModel, hidden_SBH: Tensor) -> LossResult:
        forward = self._in_flight.forward
        mask_BS = forward.micro_batch.loss_mask
        mask_SB = mask_BS.transpose(0, 1)
        lm = lm_loss(model, forward, model.logits(hidden_SBH), skipped=self.balancer.config.skip_lm_loss)
        # By now ModelOpt has captured the outputs of both models' layers, output layers included.
        captured = model.compute_kd_loss(student_loss=None, skip_balancer=True, faults=forward.faults)
        (logits_SB, observed), *pairs_SB = captured.values()
        logits, *pairs = (self._masked_sum(losses_SB, mask_SB) for losses_SB in (logits_SB, *pairs_SB))
        intermediate = torch.stack(pairs).mean() if pairs else torch.zeros_like(logits)
        losses = Losses(lm, logits, intermediate)
        reported = losses._replace(intermediate=self._over_sequence(model, intermediate))
        weights = balanced(Losses(*(loss.detach() for loss in reported)), self.balancer.config)
        return loss_result(sum(losses.weighted(weights)), mask_BS, reported, weights, observed.sums(mask_SB))

    def _masked_sum(self, losses_SB: Tensor, mask_SB: Tensor) -> Tensor:
        if losses_SB.shape[0] != mask_SB.shape[0]:  # this rank's part of the sequence
            mask_SB = mask_SB.chunk(self._layout.tp.size)[self._layout.tp.rank]
        return (losses_SB.float() * mask_SB).sum()

    def _over_sequence(self, model: mtd.DistillationModel, partial: Tensor) -> Tensor:
        partial = partial.detach().clone()
        if model.config.sequence_parallel:
            torch.distributed.all_reduce(partial, group=self._layout.tp.group)
        return partial


class LogitsCriterion(_Loss):
    """Divergence of the two output layers' distributions. ModelOpt wants "Logits" in the name."""

    def __init__(self, compared: ComparedLogits) -> None:
        super().__init__()
        self._compared = compared

    def forward(
        self, student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None], *, faults: Faults
    ) -> tuple[Tensor, Observed]:
        """Of outputs of a ColumnParallelLinear, ([S, B, V] sharded over V, bias) both. See `ComparedLogits`."""
        return self._compared(student[0], teacher[0], faults)


class HiddenCriterion(_Loss):
    """The loss of a layer pair."""

    def __init__(self, pair: LayerPair) -> None:
        super().__init__()
        self.projection, self._loss = pair.projection, pair.loss_per_token

    def forward(
        self, student: Tensor | tuple[Tensor, ...], teacher: Tensor | tuple[Tensor, ...], *, faults: Faults
    ) -> Tensor:
        """Of the student's [S, B, H] and the teacher's [S, B, G]; per token, [S, B]. `faults` is given to all."""
        student_SBH = hidden_states_of(student)
        if self.projection is not None:
            student_SBH = self.projection(student_SBH)
        return self._loss(student_SBH, hidden_states_of(teacher))


def _logits(model: Headed, hidden_SBG: Tensor) -> Tensor:
    return model.logits(hidden_SBG)
