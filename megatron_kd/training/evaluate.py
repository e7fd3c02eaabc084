"""Losses and agreement with the teacher on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from megatron_kd.training.run import Run
from megatron_kd.training.step import Batch, forward_backward


@torch.no_grad()
def evaluate(run: Run, micro_batches: Iterator[Batch]) -> dict[str, float]:
    """Mean losses over `validation.eval_iters` global batches, equal on every rank.

    Args:
        run: its weights are read, nothing is changed.
        micro_batches: yields this rank's micro-batches, from the first validation sample on.

    Returns:
        The reported means, `perplexity`, and `tokens` (unmasked tokens evaluated).
    """
    run.model.eval()
    count = run.cfg.validation.eval_iters * run.derived.num_microbatches
    means, tokens = forward_backward(run, micro_batches, count, forward_only=True)
    run.model.train()
    return {**means, "perplexity": math.exp(min(means["lm_loss"], 700.0)), "tokens": tokens}
