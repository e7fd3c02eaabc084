"""Losses and agreement with the teacher on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from megatron_kd.distillation.report import REPORTED
from megatron_kd.errors import NumericalFault
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.signals import StopSignals
from megatron_kd.training.forward_pass import Totals, forward_batch, means_of
from megatron_kd.training.records import measured
from megatron_kd.training.run_state import ForwardRun


@torch.no_grad()
def evaluate(
    run: ForwardRun, micro_batches: Iterator[MicroBatch], stop: StopSignals | None = None
) -> dict[str, float] | None:
    """Mean losses over `validation.eval_iters` global batches, equal on every rank.

    Args:
        run: is left unchanged.
        micro_batches: yields this rank's micro-batches, from the first validation sample on.
        stop: the signals of this rank; None if it cannot be asked to stop.

    Returns:
        The means that this run measures, `perplexity`, and `tokens` (unmasked tokens evaluated), alone if that is 0;
        None if a rank was asked to stop.

    Raises:
        NumericalFault: logits, or a metric, that are non-finite; on every rank.
    """
    for chunk in run.chunks:
        chunk.eval()
    batches: list[Totals] = []
    # One global batch at a time: a teacher elsewhere hands over what it has of one.
    while len(batches) < run.cfg.validation.eval_iters and not any(batch.stop_requested for batch in batches):
        batches.append(forward_batch(run, micro_batches, stop))
    for chunk in run.chunks:
        chunk.train()
    if any(batch.stop_requested for batch in batches):
        return None
    means, tokens = means_of({name: sum(batch.sums[name] for batch in batches) for name in REPORTED})
    if tokens == 0:
        return {"tokens": 0}  # the means over no tokens would be 0, better than any other
    values = {**means, "perplexity": math.exp(min(means["lm_loss"], 700.0)), "tokens": tokens}
    _refuse_non_finite(run, values)
    return measured(run, values, training=False)


def _refuse_non_finite(run: ForwardRun, values: dict[str, float]) -> None:
    wrong = ", ".join(f"{name}={value}" for name, value in values.items() if not math.isfinite(value))
    if wrong:
        where = f"evaluation after step {run.step}"
        raise NumericalFault(f"{where}: the logits are finite, but not what follows from them: {wrong}")
