"""Distillation and LM loss straight from hidden states and output heads: the logits of neither model ever exist.

One pass over chunks of tokens makes a chunk of both models' logits, their losses, and the chunk's part of the
gradients of hidden states, head and bias; the student's logits buffer is reused for their gradient. Weights and scales
of the total are therefore inputs: the gradients are formed in the forward, and the backward only scales them.
Memory beyond inputs and results grows with chunk x V, not with N x V; `fused_pass` holds the pass itself.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), H student hidden size, G teacher hidden size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import MegatronKDError
from megatron_kd.losses.cross_entropy import IGNORE_INDEX
from megatron_kd.losses.faults import Faults
from megatron_kd.losses.fused_heads import Head, gather_sequence
from megatron_kd.losses.fused_pass import FusedLinear, Plan, make_plan
from megatron_kd.losses.shard import compute_dtype


class DetachedLossUsed(MegatronKDError, RuntimeError):
    """A per-token value that is only for reports was differentiated."""


class FusedLoss(NamedTuple):
    """Result of `fused_linear_divergence`.

    Attributes:
        total: scalar, sum over tokens of token_weights * (kd_scale * divergence + lm_scale * lm); differentiable.
        divergence: [...] per token, detached: using it in a backward raises.
        lm: [...] per token, detached likewise; None without labels.
    """

    total: Tensor
    divergence: Tensor
    lm: Tensor | None


class FusedEvaluation(NamedTuple):
    """Result of `fused_linear_evaluation`, [...] per token.

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


def fused_linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    token_weights: Tensor | None = None,
    labels: Tensor | None = None,
    kd_scale: float | Tensor = 1.0,
    lm_scale: float | Tensor = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    sequence_parallel: bool = False,
    ignore_index: int = IGNORE_INDEX,
    temperature_squared: bool = False,
    beta: float = 0.5,
    alpha: float = 0.1,
    weight_grad_buffer: Tensor | None = None,
    faults: Faults | None = None,
) -> FusedLoss:
    """Distillation and LM loss of hidden states and heads, without logits.

    Formulas as in `vocab_parallel_divergence` and `vocab_parallel_cross_entropy`, which it equals. Gradients go to
    the student's hidden states, weight and bias where those require one; a frozen head's gradient is not formed.

    If `student_weight` has a `main_grad`, the backward adds to it instead of to `.grad`, as megatron-core's
    ColumnParallelLinear does: `grad_added_to_main_grad` is set, and a dummy gradient is returned so that hooks run
    (a zero one if the weight says `zero_out_wgrad`, which megatron-core sets on tied embeddings).

    Args:
        student_hidden: [..., H], or [S/tp, ..., H] under sequence parallelism.
        student_weight: [V/tp, H], this rank's rows of the head; tied embeddings need nothing special.
        teacher_hidden: [..., G], the same tokens; a sequence shard like the student's, or whole.
        teacher_weight: [V/tp, G]. At tp > 1 as many rows as the student's, so that both shards hold the same ids.
        kind, temperature, temperature_squared, beta, alpha: the divergence, see `vocab_parallel_divergence`.
        token_weights: [...] of whole sequences; 0 masks a token. None is 1 for each token.
        labels: [...] of whole sequences, for the LM loss (at temperature 1, over all student ids); None for none.
        kd_scale: scale of the divergence in the total.
        lm_scale: scale of the LM loss in the total.
        group: the tensor-parallel group that shards both heads; None when this rank holds all ids.
        chunk_tokens: tokens whose logits exist at a time. By default few enough for tens of MB on a CPU, and enough
            for efficient matrix products on a GPU.
        student_bias: [V/tp] or None.
        teacher_bias: [V/tp] or None.
        vocab_size: the student's true vocabulary size over all ranks; rows at or above it are padding.
        teacher_vocab_size: the teacher's. Where they differ the divergence is taken over the shared ids, the first
            min(vocab_size, teacher_vocab_size), each model's distribution renormalised over them.
        sequence_parallel: whether `student_hidden` is this rank's shard of the sequence (dimension 0).
        ignore_index: label of tokens without an LM loss.
        weight_grad_buffer: float32 [V/tp, H] to form the weight's gradient in, to reuse one allocation; it must be
            left alone until the backward. None allocates.
        faults: where to note what is wrong with the numbers, for a step whose ranks must all raise together; None
            raises here.

    Returns:
        `FusedLoss`; its fields are float32 (float64 for float64 inputs) and the same on every rank.

    Raises:
        InputError: shapes that do not match, unequal shard widths, or a label that is no id.
        NumericalFault: logits that are not finite, on any rank; checked once, after the last chunk. Not with `faults`.
    """
    plan = make_plan(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        kind=kind,
        temperature=temperature,
        token_weights=token_weights,
        labels=labels,
        kd_scale=kd_scale,
        lm_scale=lm_scale,
        group=group,
        chunk_tokens=chunk_tokens,
        teacher_bias=teacher_bias,
        vocab_size=vocab_size,
        teacher_vocab_size=teacher_vocab_size,
        sequence_parallel=sequence_parallel,
        ignore_index=ignore_index,
        temperature_squared=temperature_squared,
        beta=beta,
        alpha=alpha,
        weight_grad_buffer=weight_grad_buffer,
        faults=faults,
    )
    total, divergence_N, lm_N = FusedLinear.apply(student_hidden, student_weight, student_bias, plan)
    leading = _leading_shape(student_hidden, plan)
    lm = None if labels is None else _reported(lm_N.view(leading))
    return FusedLoss(total, _reported(divergence_N.view(leading)), lm)


def fused_linear_evaluation(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    **options: Any,
) -> FusedEvaluation:
    """Per-token losses, and what evaluation asks beside them, from the same chunks, without gradients.

    Args:
        student_hidden, student_weight, teacher_hidden, teacher_weight, student_bias: see `fused_linear_divergence`.
        options: its other keyword arguments that do not concern the total or gradients: `labels`, `kind`, ...

    Returns:
        `FusedEvaluation`. KL and rank are over the shared ids; equal logits rank by id, whatever the sharding.

    Raises:
        InputError, NumericalFault: as `fused_linear_divergence`.
    """
    with torch.no_grad():
        plan = make_plan(student_hidden, student_weight, teacher_hidden, teacher_weight, **options)
        whole = student_hidden if plan.gather is None else gather_sequence(student_hidden, plan.gather)
        head = Head(student_weight, student_bias, plan.terms.student.width)
        out = plan.run(whole.reshape(-1, whole.shape[-1]), head, None, with_metrics=True)
        leading, dtype = whole.shape[:-1], compute_dtype(whole)
        lm = None if plan.inputs.labels is None else out.lm.to(dtype).view(leading)
        divergence, kl = (values.to(dtype).view(leading) for values in (out.divergence, out.kl))
        return FusedEvaluation(divergence, lm, kl, out.rank.long().view(leading))


def _leading_shape(hidden: Tensor, plan: Plan) -> torch.Size:
    """The shape of per-token results: that of the whole hidden states."""
    if plan.gather is None:
        return hidden.shape[:-1]
    return torch.Size((hidden.shape[0] * plan.terms.student.world, *hidden.shape[1:-1]))


def _reported(values: Tensor) -> Tensor:
    """`values` with a backward that raises, so that a loss built from them fails instead of training nothing."""
    if not torch.is_grad_enabled():
        return values
    return _Reported.apply(values, torch.zeros((), requires_grad=True))


class _Reported(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        raise DetachedLossUsed(
            "the per-token values of fused_linear_divergence are for reports and carry no gradient: use its total, "
            "with token_weights, kd_scale and lm_scale as inputs, or vocab_parallel_divergence of full logits"
        )
