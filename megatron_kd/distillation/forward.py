"""One micro-batch on its way through a chunk of the student, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.distillation.balance import Losses
from megatron_kd.distillation.report import StepSums
from megatron_kd.losses.faults import Faults
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.teachers.protocol import Targets


@dataclass(frozen=True, eq=False)
class Forward:
    """All that the losses of a micro-batch need. It is made as the forward begins, and gone when that has returned.

    Attributes:
        micro_batch: on this rank's device.
        targets: what the teacher says of it.
        weights: of the losses in the total.
        sums: of the step, to which losses inside the model add.
        faults: the counter in which losses record numerical faults.
    """

    micro_batch: MicroBatch
    targets: Targets
    weights: Losses
    sums: StepSums
    faults: Faults
