"""The one pass of `fused_linear`: chunks of logits, their losses, and the gradients of hidden states and head.

Two sizes: a *chunk* is the unit of the matrix products, a *tile*, a few rows of it that fit the cache, the unit of the
elementwise work and of the collectives. With a sharded vocabulary the softmax normaliser must be known before a
gradient: one all-gather of a few numbers a token for each tile (and one all-reduce for kinds that are not a KL). A
first pass that batches all statistics into one collective would compute both models' logits twice, while a tile's
collective is a few kilobytes and costs only its latency.

Shapes: N tokens, C tokens of a chunk, V vocabulary (the logical size, also on a shard), H student hidden size,
G teacher hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Faults, finite, finite_divergence, known_labels, require
from megatron_kd.losses.fused_heads import Head, HeadGradients, gather_sequence, scatter_sequence
from megatron_kd.losses.fused_tile import Labels, Terms, TileLosses, TokenInputs, TokenOutputs
from megatron_kd.losses.kinds import make_kind
from megatron_kd.losses.shard import VocabShard, compute_dtype
from megatron_kd.losses.sizes import chunk_rows, tile_rows
from megatron_kd.losses.tiles import tiles


@dataclass(frozen=True)
class Plan:
    """All inputs of the pass but the student's hidden states, head and bias, which autograd must see.

    Attributes:
        terms, inputs: what is computed, and its per-token inputs.
        teacher_hidden: [N, G], the teacher's hidden states of all tokens.
        teacher: the teacher's head.
        chunk: tokens of a chunk.
        gather: the group to gather the student's sequence shards over, None if the student's hidden states are whole.
        with_gradient: whether gradients are recorded.
        weight_grad_buffer: where to form the head's gradient, or None.
        faults: where to note what is wrong with the numbers; None raises.
    """

    terms: Terms
    inputs: TokenInputs
    teacher_hidden: Tensor
    teacher: Head
    chunk: int
    gather: dist.ProcessGroup | None
    with_gradient: bool
    weight_grad_buffer: Tensor | None = None
    faults: Faults | None = None

    def run(
        self, hidden_NH: Tensor, student: Head, gradients: HeadGradients | None, with_metrics: bool = False
    ) -> TokenOutputs:
        """Per-token losses of whole hidden states, checked; fills `gradients`, and computes `fused_metrics`, if wanted.

        Raises:
            NumericalFault: logits that are not finite, on any rank.
            InputError: a label that is no id.
        """
        device, width = hidden_NH.device, self.terms.shared.width
        out = TokenOutputs(len(hidden_NH), device)
        student_CV = torch.empty(self.chunk, student.width, dtype=student.dtype, device=device)
        teacher_CV = torch.empty(self.chunk, width, dtype=self.teacher.dtype, device=device)
        for rows in tiles(len(hidden_NH), self.chunk):
            count = rows.stop - rows.start
            hidden_CH = hidden_NH[rows].to(student.dtype)
            student.logits_(hidden_CH, student_CV[:count])
            self.teacher.logits_(self.teacher_hidden[rows].to(self.teacher.dtype), teacher_CV[:count])
            self._chunk_losses(out, student_CV[:count], teacher_CV[:count], rows, gradients is not None, with_metrics)
            if gradients is not None:
                gradients.add_(student, student_CV[:count], hidden_CH, rows)
        self._check(out)
        return out

    def _chunk_losses(
        self,
        out: TokenOutputs,
        student_CV: Tensor,
        teacher_CV: Tensor,
        rows: slice,
        with_gradient: bool,
        with_metrics: bool,
    ) -> None:
        """Losses of a chunk, which holds the tokens `rows`, a tile at a time; see `TileLosses.run`."""
        tile = min(self.chunk, tile_rows(self.terms.shared.widest, student_CV.device.type))
        dtype = compute_dtype(student_CV)
        losses = TileLosses(self.terms, self.inputs, out, tile, dtype, with_metrics)
        for part in tiles(len(student_CV), tile):
            tokens = slice(rows.start + part.start, rows.start + part.stop)
            losses.run(student_CV[part], teacher_CV[part], tokens, with_gradient)

    def _check(self, out: TokenOutputs) -> None:
        conditions = finite_divergence(out.student_lse, out.teacher_lse, out.divergence)
        if self.inputs.labels is not None:
            conditions.append(finite(out.lm_lse, "student"))
            conditions.append(known_labels(out.holders, self.inputs.labels.keep))
        require(conditions, self.faults)


class FusedLinear(torch.autograd.Function):
    """(total, divergence [N], lm [N]) of hidden states, weight, bias and a `Plan`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan
    ) -> tuple[Tensor, Tensor, Tensor]:
        whole = hidden if plan.gather is None else gather_sequence(hidden, plan.gather)
        hidden_NH = whole.reshape(-1, whole.shape[-1])
        needs = ctx.needs_input_grad[:3]
        gradients = None
        if plan.with_gradient and any(needs):
            gradients = HeadGradients(hidden_NH, weight, bias, needs, plan.weight_grad_buffer)
        out = plan.run(hidden_NH, Head(weight, bias, plan.terms.student.width), gradients)
        if gradients is not None:
            grad_hidden = gradients.hidden
            if grad_hidden is not None:
                grad_hidden = _sum_over_shards(grad_hidden.view(whole.shape), plan)
            ctx.save_for_backward(grad_hidden, gradients.weight, gradients.bias)
            ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        inputs, dtype = plan.inputs, compute_dtype(hidden)
        total = (inputs.kd_factor * out.divergence + inputs.lm_factor * out.lm).sum().to(dtype)
        divergence_N, lm_N = out.divergence.to(dtype), out.lm.to(dtype)
        ctx.mark_non_differentiable(divergence_N, lm_N)
        return total, divergence_N, lm_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight_VH, bias_V = ctx.saved_tensors
        return (
            None if hidden is None else hidden * grad,
            None if weight_VH is None else _weight_gradient(ctx.weight, weight_VH, grad),
            None if bias_V is None else (bias_V * grad).to(ctx.bias_dtype),
            None,
        )


def _sum_over_shards(gradient: Tensor, plan: Plan) -> Tensor:
    """The hidden states' gradient of all vocabulary shards, for the part of the sequence that this rank holds."""
    if plan.gather is not None:
        return scatter_sequence(gradient, plan.gather)
    return plan.terms.shared.sum_(gradient)


def _weight_gradient(weight: Tensor, gradient_VH: Tensor, grad: Tensor) -> Tensor | None:
    """The gradient for autograd, or, where the weight has a `main_grad`, a dummy after adding to that."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return (gradient_VH * grad).to(weight.dtype)
    main_grad.addcmul_(gradient_VH, grad)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    # megatron-core's hooks need some gradient to run; on tied embeddings they add it to the embedding's.
    zero = getattr(weight, "zero_out_wgrad", False)
    return torch.zeros_like(weight) if zero else torch.empty_like(weight)


def make_plan(
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
    teacher_bias: Tensor | None = None,
    vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    sequence_parallel: bool = False,
    ignore_index: int = -100,
    temperature_squared: bool = False,
    beta: float = 0.5,
    alpha: float = 0.1,
    weight_grad_buffer: Tensor | None = None,
    faults: Faults | None = None,
) -> Plan:
    """Check the arguments of `fused_linear_divergence`, and gather the teacher's sequence if it is sharded."""
    if not temperature > 0:
        raise InputError(f"temperature={temperature} must be positive")
    shared, student = _shards(student_weight, teacher_weight, group, vocab_size, teacher_vocab_size)
    gather = group if sequence_parallel and student.world > 1 else None
    tokens = student_hidden.shape[:-1].numel() * (student.world if gather is not None else 1)
    teacher_NG = _whole_teacher(teacher_hidden, tokens, student)
    weights_N = _per_token(token_weights, tokens, "token_weights")
    weights_N = student_hidden.new_ones(tokens, dtype=torch.float64) if weights_N is None else weights_N.double()
    labels_N = _per_token(labels, tokens, "labels")
    pairs = None if labels_N is None else Labels(labels_N, labels_N != ignore_index)
    factor = temperature**2 if temperature_squared else 1.0
    return Plan(
        Terms(make_kind(kind, beta=beta, alpha=alpha), 1 / temperature, factor, shared, student),
        TokenInputs(weights_N * kd_scale, weights_N * lm_scale, pairs),
        teacher_NG,
        Head(teacher_weight, teacher_bias, shared.width),
        max(1, min(chunk_tokens or chunk_rows(student.widest, student_hidden.device.type), tokens)),
        gather,
        torch.is_grad_enabled(),
        weight_grad_buffer,
        faults,
    )


def _shards(
    student_weight: Tensor,
    teacher_weight: Tensor,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
    teacher_vocab_size: int | None,
) -> tuple[VocabShard, VocabShard]:
    """The ids that both models share, and the student's."""
    student = VocabShard.of(len(student_weight), group, vocab_size)
    teacher = VocabShard.of(len(teacher_weight), group, teacher_vocab_size)
    if student.world > 1 and len(student_weight) != len(teacher_weight):
        raise InputError(
            f"the student's head has {len(student_weight)} rows on this rank and the teacher's {len(teacher_weight)}: "
            "their shards hold different ids. Pad both heads to one width, and give both true vocabulary sizes"
        )
    shared_ids = min(student.vocab_size, teacher.vocab_size)
    return VocabShard.of(len(student_weight), group, shared_ids), student


def _whole_teacher(hidden: Tensor, tokens: int, shard: VocabShard) -> Tensor:
    """[N, G] of a whole or sequence-sharded teacher's hidden states."""
    hidden = hidden.detach()
    count = hidden.shape[:-1].numel()
    if count != tokens and count * shard.world == tokens and shard.group is not None:
        hidden = gather_sequence(hidden, shard.group)
    elif count != tokens:
        raise InputError(f"teacher_hidden {tuple(hidden.shape)} has {count} tokens, the student's {tokens}")
    return hidden.reshape(tokens, -1)


def _per_token(values: Tensor | None, tokens: int, name: str) -> Tensor | None:
    if values is not None and values.numel() != tokens:
        raise InputError(f"{name} {tuple(values.shape)} must have one entry for each of the {tokens} tokens")
    return None if values is None else values.detach().reshape(-1)
