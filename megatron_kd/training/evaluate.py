"""Losses and agreement with the teacher on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from megatron_kd.distillation.objective import REPORTED
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.training.run_state import ForwardRun
from megatron_kd.training.step import forward_backward, means_of


@torch.no_grad()
def evaluate(run: ForwardRun, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
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


def measured(run: ForwardRun, values: dict[str, float], *, training: bool) -> dict[str, float]:
    """`values` without those that this run does not measure, which are 0 by construction."""
    absent: tuple[str, ...] = ("teacher_kl", "teacher_top1_agreement", "teacher_top5_agreement") if training else ()
    kd = run.cfg.models.kd
    if kd is None:
        absent = ("logits_loss", "intermediate_loss", "teacher_")
    else:
        absent += ("lm_loss",) if training and kd.skip_lm_loss else ()
        absent += () if kd.logit_kl_topk else ("teacher_topk_mass",)
        absent += () if kd.intermediate_layer_pairs else ("intermediate_loss",)
    return {name: value for name, value in values.items() if not name.startswith(absent)}
