"""The one pass of `fused_linear`: chunks of logits, their losses, and the gradients of hidden states and head.

Two sizes: a *chunk* is the unit of the matrix products, a *tile*, a few rows of it that fit the cache, the unit of the
elementwise work and of the collectives. With a sharded vocabulary the softmax normaliser must be known before a
gradient: one all-gather of a few numbers per token for each tile (and one all-reduce for kinds that are not a KL). A
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

from megatron_kd.losses.faults import Faults, finite, finite_divergence, known_labels, require
from megatron_kd.losses.fused_heads import HeadGradients, HeadProducts, gather_sequence, scatter_sequence
from megatron_kd.losses.fused_inputs import Heads, TokenInputs, Weighting
from megatron_kd.losses.fused_tile import Terms, TileLosses, TokenOutputs
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import compute_dtype
from megatron_kd.losses.sizes import chunk_rows, tile_rows
from megatron_kd.losses.tiles import tiles


@dataclass(frozen=True, kw_only=True)
class FusedPass:
    """All inputs of the pass except the student's hidden states, weight and bias, which autograd must see.

    Attributes:
        terms: the losses, and the ids they are over.
        inputs: factors and labels of each token.
        teacher_hidden: [N, G], the teacher's hidden states of all tokens.
        teacher: the products of the teacher's head.
        chunk: tokens of a chunk.
        gather: the group to gather the student's sequence shards over, None if the student's hidden states are whole.
        faults: counts numerical faults; None raises.
    """

    terms: Terms
    inputs: TokenInputs
    teacher_hidden: Tensor
    teacher: HeadProducts
    chunk: int
    gather: dist.ProcessGroup | None
    faults: Faults | None

    @classmethod
    def of(
        cls,
        heads: Heads,
        divergence: Divergence,
        weighting: Weighting,
        *,
        group: dist.ProcessGroup | None,
        sequence_parallel: bool,
        chunk_tokens: int | None,
        faults: Faults | None,
    ) -> FusedPass:
        """Check the arguments of `fused_loss`, and gather the teacher's sequence if it is sharded.

        Raises:
            InputError: shapes that do not match.
        """
        shared, student = heads.shared_shard(group), heads.student.shard(group)
        device = heads.student.hidden.device
        gather = group if sequence_parallel and student.world > 1 else None
        tokens = heads.student.tokens * (student.world if gather is not None else 1)
        return cls(
            terms=Terms(divergence, shared, student),
            inputs=weighting.per_token(tokens, device),
            teacher_hidden=heads.whole_teacher(tokens, group),
            teacher=HeadProducts(heads.teacher.weight, heads.teacher.bias, shared.width),
            chunk=max(1, min(chunk_tokens or chunk_rows(student.widest, device.type), tokens)),
            gather=gather,
            faults=faults,
        )

    def whole_sequence(self, hidden: Tensor) -> Tensor:
        """The student's whole hidden states [S, ..., H] from those on this rank; one collective if they are shards."""
        return hidden if self.gather is None else gather_sequence(hidden, self.gather)

    def sum_over_shards(self, gradient: Tensor) -> Tensor:
        """The gradient [S, ..., H] summed over vocabulary shards, for this rank's part of the sequence.

        Each shard's logits depend on all hidden states, so each has a part of their gradient; one collective.
        """
        if self.gather is not None:
            return scatter_sequence(gradient, self.gather)
        return self.terms.shared.sum_(gradient)

    def run(
        self,
        hidden_NH: Tensor,
        student: HeadProducts,
        gradients: HeadGradients | None,
        with_metrics: bool = False,
    ) -> TokenOutputs:
        """Per-token losses of whole hidden states, checked; fills `gradients`, and computes `fused_metrics`, if wanted.

        Raises:
            NumericalFault: logits that are not finite, on any rank.
            InputError: an invalid label.
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
    """(total, divergence [N], lm [N]) of hidden states, weight, bias and a `FusedPass`.

    The gradients are formed in the forward, where the logits are, and saved in their stead: they have the size of
    hidden states and head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        fused: FusedPass,
        with_gradient: bool,
        weight_grad_buffer: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        whole = fused.whole_sequence(hidden)
        hidden_NH = whole.reshape(-1, whole.shape[-1])
        needs = ctx.needs_input_grad[:3]
        gradients = None
        if with_gradient and any(needs):
            gradients = HeadGradients(hidden_NH, weight, bias, needs, weight_grad_buffer)
        out = fused.run(hidden_NH, HeadProducts(weight, bias, fused.terms.student.width), gradients)
        if gradients is not None:
            grad_hidden = gradients.hidden
            if grad_hidden is not None:
                grad_hidden = fused.sum_over_shards(grad_hidden.view(whole.shape))
            ctx.save_for_backward(grad_hidden, gradients.weight, gradients.bias)
            ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        inputs, dtype = fused.inputs, compute_dtype(hidden)
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
            None,
            None,
        )


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
