"""Vocabulary-parallel cross entropy of materialised logits, the language-model loss; chunked, one collective.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), C tokens of a tile, R ranks.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Faults, finite, known_labels, require
from megatron_kd.losses.shard import Sharding, VocabShard, compute_dtype
from megatron_kd.losses.tiles import Tiling

IGNORE_INDEX = -100  # the convention of PyTorch and Hugging Face


def vocab_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    faults: Faults | None = None,
    **sharding: Unpack[Sharding],
) -> Tensor:
    """-log softmax(logits)[label], for each token.

    Args:
        logits: [..., V/tp], this rank's shard of the vocabulary.
        labels: [...] of integer global ids, the same on every rank.
        ignore_index: the label of tokens whose loss and gradient are zero.
        faults: counts numerical faults, for a step whose ranks must all raise together; None raises here.
        sharding: see `Sharding`.

    Returns:
        [...] of float32 (float64 for float64 logits), the same on every rank, differentiable.

    Raises:
        InputError: if the shapes do not match, or a label is neither an id nor `ignore_index`.
        NumericalFault: logits that are not finite, on any rank; not with `faults`, nor the InputError of a label.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(f"labels {tuple(labels.shape)} must have the logits' leading shape {tuple(logits.shape[:-1])}")
    tiling = Tiling.of(logits, **sharding)
    label_N = labels.reshape(-1)
    logits_NV = logits.reshape(-1, logits.shape[-1])
    loss_N = _CrossEntropy.apply(logits_NV, label_N, label_N != ignore_index, tiling, faults)
    return loss_N.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits and one log-sum-exp per token for the backward, which needs no collective."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, label_N: Tensor, keep_N: Tensor, tiling: Tiling, faults: Faults | None
    ) -> Tensor:
        shard, dtype = tiling.shard, compute_dtype(logits_NV)
        stats_3N = torch.empty(3, len(logits_NV), dtype=torch.float64, device=logits_NV.device)
        for rows in tiling:
            tile_CV = logits_NV[rows, : shard.width]
            max_C, sum_C = exponentials_(tile_CV.to(dtype, copy=True))
            stats_3N[0, rows] = sum_C.double().log_().add_(max_C)
            stats_3N[1:, rows] = shard.pick(tile_CV, label_N[rows])
        stats_R3N = shard.gather(stats_3N)
        lse_N, (picked_N, holders_N) = torch.logsumexp(stats_R3N[:, 0], dim=0), stats_R3N[:, 1:].sum(0)
        require([finite(lse_N, "student"), known_labels(holders_N, keep_N)], faults)
        ctx.save_for_backward(logits_NV, label_N, keep_N, lse_N)
        ctx.tiling = tiling
        return torch.where(keep_N, lse_N - picked_N, 0.0).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, label_N, keep_N, lse_N = ctx.saved_tensors
        shard, dtype = ctx.tiling.shard, compute_dtype(logits_NV)
        out_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
        out_NV[:, shard.width :] = 0
        factor_N = torch.where(keep_N, grad_N, 0.0).to(dtype)
        for rows in ctx.tiling:
            prob_CV = (logits_NV[rows, : shard.width].to(dtype) - lse_N[rows, None].to(dtype)).exp_()
            subtract_at_labels_(prob_CV, label_N[rows], shard)
            torch.mul(prob_CV, factor_N[rows, None], out=out_NV[rows, : shard.width])
        return out_NV, None, None, None, None


def exponentials_(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits with exp(logits - max) over this shard; return max and sum, [C]. No slots give 0 and 0."""
    if logits_CV.shape[-1] == 0:
        nothing_C = logits_CV.new_zeros(len(logits_CV))
        return nothing_C, nothing_C
    max_C1 = logits_CV.amax(-1, keepdim=True)
    return max_C1.squeeze(-1), logits_CV.sub_(max_C1).exp_().sum(-1)


def subtract_at_labels_(prob_CV: Tensor, label_C: Tensor, shard: VocabShard) -> Tensor:
    """prob - onehot(label), in place, where this shard holds the label."""
    if shard.width:
        slot_C, here_C = shard.find(label_C)
        prob_CV.scatter_add_(-1, slot_C[:, None], -here_C[:, None].to(prob_CV.dtype))
    return prob_CV
