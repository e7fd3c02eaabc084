"""From a micro-batch to the number that is differentiated and the numbers that are reported.

The last stage computes its losses as a head function: its model's output is the micro-batch's `LossResult`.

Shapes: S sequence, B micro-batch, H student hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from megatron_kd.distillation.balance import Balancer, Losses
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.logits import LogitsLoss, lm_loss
from megatron_kd.distillation.report import LossResult, Observed, StepSums, loss_result
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Targets


class Objective(Protocol):
    """The interface between the training loop and its objective."""

    @property
    def balancer(self) -> Balancer | None:
        """Of its losses; None where there is one loss."""

    def forward(self, micro_batch: MicroBatch, targets: Targets, sums: StepSums) -> AbstractContextManager[None]:
        """A block around the call of a chunk's model with `micro_batch`, on every stage.

        On the last stage the model returns the micro-batch's `LossResult`. Losses of other stages, and numerical
        faults, are added to `sums`.
        """


class LanguageModelling:
    """Plain next-token cross entropy.

    Args:
        head: the model of the last stage; None on the others.
    """

    balancer = None

    def __init__(self, head: DistillableGPTModel | None) -> None:
        self._in_flight: InFlight[Forward] = InFlight()
        if head is not None:
            head.head_function = self._losses

    def forward(self, micro_batch: MicroBatch, targets: Targets, sums: StepSums) -> AbstractContextManager[None]:
        """See `Objective`."""
        weights, faults = Losses(1.0, 0.0, 0.0), sums.faults(micro_batch)
        return self._in_flight.holding(Forward(micro_batch, targets, weights, sums, faults))

    def _losses(self, model: DistillableGPTModel, hidden_SBH: Tensor) -> LossResult:
        forward = self._in_flight.forward
        total, mask_BS = lm_loss(model, forward, model.logits(hidden_SBH), skipped=False), forward.micro_batch.loss_mask
        return loss_result(total, mask_BS, Losses(total, 0.0, 0.0), forward.weights, Observed().sums(mask_BS))


class Distillation:
    """Logit divergence, intermediate losses and, where wanted, cross entropy, with weights known before a step.

    The intermediate losses are not in the total: their gradient enters at their layers (`inject_pairs`).

    Args:
        head: the student's last stage; None on the others.
        logits: the loss of its final hidden states; None with `head`.
        balancer: gives the weights.
        in_flight: where the models' parts find the forward.
    """

    def __init__(
        self,
        head: DistillableGPTModel | None,
        logits: LogitsLoss | None,
        balancer: Balancer,
        in_flight: InFlight[Forward],
    ) -> None:
        self.balancer, self._logits, self._in_flight = balancer, logits, in_flight
        if head is not None:
            head.head_function = self._losses

    def forward(self, micro_batch: MicroBatch, targets: Targets, sums: StepSums) -> AbstractContextManager[None]:
        """See `Objective`."""
        weights, faults = self.balancer.weights(), sums.faults(micro_batch)
        return self._in_flight.holding(Forward(micro_batch, targets, weights, sums, faults))

    def _losses(self, model: DistillableGPTModel, hidden_SBH: Tensor) -> LossResult:
        assert self._logits is not None, "logits are on the last stage only"
        forward = self._in_flight.forward
        result = self._logits(forward, model, hidden_SBH)
        losses = Losses(result.lm, result.logits, 0.0)
        return loss_result(result.total, forward.micro_batch.loss_mask, losses, forward.weights, result.observed)
