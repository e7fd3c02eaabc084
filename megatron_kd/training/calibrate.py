"""The scales of a fake-quantised student's inputs, measured once at the start of a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megatron_kd.models.fake_quantization import calibrate_inputs, needs_calibration
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.training.forward_pass import forward_batch
from megatron_kd.training.run_state import Run


@torch.no_grad()
def calibrate(run: Run, micro_batches: Iterator[MicroBatch]) -> None:
    """Fix the scales of inputs on `model.quantization_calibration_batches` global batches, where they are not yet.

    Args:
        run: its student's scales are changed, where it has a quantisation that measures inputs and was not resumed.
        micro_batches: yields this rank's micro-batches of the training data.
    """
    if not needs_calibration(run.students):
        return
    batches = min(run.cfg.model.quantization_calibration_batches, run.derived.train_iters)  # there are no more
    for chunk in run.chunks:
        chunk.eval()
    calibrate_inputs(run.students, lambda: [forward_batch(run, micro_batches) for _ in range(batches)])
    for chunk in run.chunks:
        chunk.train()
