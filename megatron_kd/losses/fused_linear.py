"""Distillation and LM loss straight from hidden states and output heads: the logits of neither model ever exist.

One pass over chunks of tokens makes a chunk of both models' logits, their losses, and the chunk's part of the
gradients of hidden states, head and bias; the student's logits buffer is reused for their gradient. Weights and scales
of the total are therefore inputs: the gradients are formed in the forward, and the backward only scales them.
Memory beyond inputs and results grows with chunk x V, not with N x V; `fused_pass` holds the pass itself.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), H student hidden size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import MegatronKDError
from megatron_kd.losses.cross_entropy import IGNORE_INDEX
from megatron_kd.losses.faults import Faults
from megatron_kd.losses.fused_heads import HeadProducts
from megatron_kd.losses.fused_inputs import Heads, Weighting
from megatron_kd.losses.fused_pass import FusedLinear, FusedPass
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import compute_dtype


class DetachedLossUsed(MegatronKDError, RuntimeError):
    """A per-token value that is only for reports was differentiated."""


class FusedLoss(NamedTuple):
    """Result of `fused_loss`.

    Attributes:
        total: scalar, sum over tokens of token_weights * (kd_scale * divergence + lm_scale * lm); differentiable.
        divergence: [...] per token, detached: using it in a backward raises.
        lm: [...] per token, detached likewise; None without labels.
    """

    total: Tensor
    divergence: Tensor
    lm: Tensor | None


class FusedEvaluation(NamedTuple):
    """Result of `fused_evaluation`, [...] per token.

    Attributes:
        divergence: the loss.
        lm: None without labels.
        kl: KL(teacher || student) at temperature 1, whatever the loss is.
        rank: how many ids the student puts before the teacher's first choice, int64; the models agree at k below k.
    """

    divergence: Tensor
    lm: Tensor | None
    kl: Tensor
    rank: Tensor


def fused_loss(
    heads: Heads,
    divergence: Divergence,
    weighting: Weighting,
    *,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
    weight_grad_buffer: Tensor | None = None,
    faults: Faults | None = None,
) -> FusedLoss:
    """Distillation and LM loss of hidden states and heads, without logits.

    It equals `materialised_divergence` and `vocab_parallel_cross_entropy` of the heads' logits. Gradients go to the
    student's hidden states, weight and bias where those require one; a frozen head's gradient is not formed.

    If the student's weight has a `main_grad`, the backward adds to it instead of to `.grad`, as megatron-core's
    ColumnParallelLinear does: `grad_added_to_main_grad` is set, and a dummy gradient is returned so that hooks run
    (a zero one if the weight says `zero_out_wgrad`, which megatron-core sets on tied embeddings).

    Args:
        heads: both models' final hidden states and output heads.
        divergence: which one, and its parameters.
        weighting: weights of tokens and scales of both losses in the total, and the labels of the LM loss.
        group: the tensor-parallel group that shards both heads; None when this rank holds all ids.
        sequence_parallel: whether the student's hidden states are this rank's shard of the sequence (dimension 0).
        chunk_tokens: tokens whose logits exist at a time. By default few enough for tens of MB on a CPU, and enough
            for efficient matrix products on a GPU.
        weight_grad_buffer: float32 [V/tp, H] to form the weight's gradient in, to reuse one allocation; it must be
            left alone until the backward. None allocates.
        faults: counts numerical faults, for a step whose ranks must all raise together; None raises here.

    Returns:
        `FusedLoss`; its fields are float32 (float64 for float64 inputs) and the same on every rank.

    Raises:
        InputError: shapes that do not match, unequal shard widths, or an invalid label.
        NumericalFault: logits that are not finite, on any rank; checked once, after the last chunk. Not with `faults`.
    """
    fused = FusedPass.of(
        heads, divergence, weighting, group=group, sequence_parallel=sequence_parallel, chunk_tokens=chunk_tokens,
        faults=faults,
    )  # fmt: skip
    hidden, weight, bias, _ = heads.student
    with_gradient = torch.is_grad_enabled()  # inside an autograd function it is always off
    total, divergence_N, lm_N = FusedLinear.apply(hidden, weight, bias, fused, with_gradient, weight_grad_buffer)
    leading = _leading_shape(hidden, fused)
    lm = None if weighting.labels is None else _reported(lm_N.view(leading))
    return FusedLoss(total, _reported(divergence_N.view(leading)), lm)


def fused_evaluation(
    heads: Heads,
    divergence: Divergence,
    *,
    labels: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    chunk_tokens: int | None = None,
    faults: Faults | None = None,
) -> FusedEvaluation:
    """Per-token losses and the other metrics of evaluation, from the same chunks, without gradients.

    Args:
        heads, divergence, group, sequence_parallel, chunk_tokens, faults: as in `fused_loss`.
        labels: [...] of whole sequences, for the LM loss; None for none.
        ignore_index: label of tokens without an LM loss.

    Returns:
        `FusedEvaluation`. KL and rank are over the shared ids; equal logits rank by id, whatever the sharding.

    Raises:
        InputError, NumericalFault: as `fused_loss`.
    """
    with torch.no_grad():
        fused = FusedPass.of(
            heads, divergence, Weighting(labels=labels, ignore_index=ignore_index), group=group,
            sequence_parallel=sequence_parallel, chunk_tokens=chunk_tokens, faults=faults,
        )  # fmt: skip
        hidden, weight, bias, _ = heads.student
        whole = fused.whole_sequence(hidden)
        student = HeadProducts(weight, bias, fused.terms.student.width)
        out = fused.run(whole.reshape(-1, whole.shape[-1]), student, None, with_metrics=True)
        leading, dtype = whole.shape[:-1], compute_dtype(whole)
        lm = None if labels is None else out.lm.to(dtype).view(leading)
        divergence_, kl = (values_N.to(dtype).view(leading) for values_N in (out.divergence, out.kl))
        return FusedEvaluation(divergence_, lm, kl, out.rank.long().view(leading))


def _leading_shape(hidden: Tensor, fused: FusedPass) -> torch.Size:
    """The shape of per-token results: that of the whole hidden states."""
    if fused.gather is None:
        return hidden.shape[:-1]
    return torch.Size((hidden.shape[0] * fused.terms.student.world, *hidden.shape[1:-1]))


def _reported(values: Tensor) -> Tensor:
    """`values` with a backward that raises, so that a loss built from them fails instead of training nothing."""
    if not torch.is_grad_enabled():
        return values
    return _Reported.apply(values, torch.zeros((), requires_grad=True))


class _Reported(torch.autograd.Function):
    """The identity, on a graph of its own: `anchor` requires a gradient, so that a backward reaches this function."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        raise DetachedLossUsed(
            "the per-token values of fused_linear_divergence are for reports and carry no gradient: use its total, "
            "with token_weights, kd_scale and lm_scale as inputs, or vocab_parallel_divergence of full logits"
        )
