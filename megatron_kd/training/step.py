"""One training step: forward, backward and update on a global batch, rolled back and retried once on NaN or Inf."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_kd.distillation.report import StepSums
from megatron_kd.errors import NumericalFault
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.seeds import random_state, set_random_state
from megatron_kd.runtime.signals import StopSignals
from megatron_kd.training.fault_records import FailedAttempt, failed_attempt, persistent_fault, record_transient_fault
from megatron_kd.training.forward_pass import Totals, add_up, means_of, next_batch, schedule
from megatron_kd.training.run_state import Run
from megatron_kd.training.update import update


@dataclass(frozen=True)
class StepReport:
    """The outcome of a step, equal on every rank.

    Attributes:
        means: of the losses, over the unmasked tokens of the global batch.
        tokens: the number of those tokens.
        grad_norm: before clipping.
        lr: of the update.
        stop_requested: a rank was asked to stop before the losses were added up.
    """

    means: dict[str, float]
    tokens: int
    grad_norm: float
    lr: float
    stop_requested: bool


def train_step(run: Run, micro_batches: Iterator[MicroBatch], stop: StopSignals | None = None) -> StepReport:
    """Take a step on the next global batch; retry it once if its numbers are non-finite.

    A fault that does not recur was transient, usually of the hardware: the run continues bitwise as if it had not
    happened. One that recurs comes from the data, the weights or the settings, and ends the run. Both leave a line in
    `run_dir/faults.jsonl`.

    Args:
        run: its weights, optimizer, schedule, balancer and `step` are changed by the attempt that succeeds, and by
            that one alone.
        micro_batches: yields this rank's micro-batches of the step.
        stop: the signals of this rank; None if it cannot be asked to stop.

    Raises:
        NumericalFault: the logits, the loss or the gradients are non-finite twice; on every rank at the same step.
        InputError: a label is outside the vocabulary; on every rank at the same step.
    """
    run.doing.enter("reading data", run.step + 1)
    batch = next_batch(run, micro_batches)
    before = random_state()
    first: FailedAttempt | None = None
    while True:
        try:
            _zero_gradients(run)
            sums = StepSums(run.layout.device)
            results = schedule(run, batch, sums, forward_only=False)()
            totals = add_up(run, results, sums, stop, f"step {run.step + 1} was not taken: ")
            report = _update(run, totals)
        except NumericalFault as fault:
            if first is not None:
                raise persistent_fault(run, first, fault) from None
            first = failed_attempt(run, batch, fault)
            set_random_state(before)
        else:
            if first is not None:
                record_transient_fault(run, first)
            return report


def _zero_gradients(run: Run) -> None:
    for chunk in run.chunks:
        chunk.zero_grad_buffer()
    run.optimizer.zero_grad()


def _update(run: Run, totals: Totals) -> StepReport:
    """Update the weights by the gradients of a batch, and count the step.

    Raises:
        NumericalFault: the loss or a gradient is not finite, on every rank; `run` is as before.
    """
    means, tokens = means_of(totals.sums)
    if not math.isfinite(means["loss"]):
        parts = ", ".join(f"{name}={value}" for name, value in means.items() if not math.isfinite(value))
        raise NumericalFault(
            f"step {run.step + 1} was not taken: the logits are finite, but not what follows from them: {parts}"
        )
    lr = run.optimizer.param_groups[0]["lr"]
    run.doing.enter("optimizer step")
    try:
        grad_norm = update(run.optimizer)
    except NumericalFault as fault:
        raise NumericalFault(f"step {run.step + 1} was not taken: {fault}") from None
    run.scheduler.step(increment=1)
    run.step += 1
    run.consumed_samples += run.derived.global_batch_size
    if tokens > 0 and run.balancer is not None:  # a batch in which no token counts says nothing about the losses
        run.balancer.observe(means)
    return StepReport(means, tokens, grad_norm, float(lr), totals.stop_requested)
