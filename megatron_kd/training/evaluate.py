"""Losses and agreement with the teacher on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from megatron_kd.distillation.objective import REPORTED
from megatron_kd.training.run import Run
from megatron_kd.training.step import Batch, forward_backward, means_of


@torch.no_grad()
def evaluate(run: Run, micro_batches: Iterator[Batch]) -> dict[str, float]:
    """Mean losses over `validation.eval_iters` global batches, equal on every rank.

    Args:
        run: its weights are read, nothing is changed.
        micro_batches: yields this rank's micro-batches, from the first validation sample on.

    Returns:
        The reported means, `perplexity`, and `tokens` (unmasked tokens evaluated); of fewer batches where `run` is
        asked to stop.
    """
    for chunk in run.chunks:
        chunk.eval()
    batches: list[dict[str, float]] = []
    # One global batch at a time: a teacher elsewhere hands over what it has of one.
    while len(batches) < run.cfg.validation.eval_iters and not run.stopping:
        batches.append(forward_backward(run, micro_batches, forward_only=True))
    for chunk in run.chunks:
        chunk.train()
    means, tokens = means_of({name: sum(batch[name] for batch in batches) for name in REPORTED})
    return {**means, "perplexity": math.exp(min(means["lm_loss"], 700.0)), "tokens": tokens}
