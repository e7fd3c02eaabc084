"""A global batch through both models, as in a step, without the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def forward_backward(run: Any, micro_batches: Sequence[Any]) -> dict[str, float]:
    """On a rank: forward and backward of its micro-batches; gradients stay in the buffers. The sums of all ranks."""
    from megatron_kd.distillation.report import StepSums
    from megatron_kd.training.forward_pass import add_up, schedule

    sums = StepSums(run.layout.device)
    results = schedule(run, micro_batches, sums, forward_only=False)()
    return add_up(run, results, sums, None, "").sums
