"""Vocabulary-parallel cross entropy of materialised logits, the language-model loss; chunked, one collective.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), C tokens of a tile, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Faults, finite, known_labels, require
from megatron_kd.losses.shard import VocabShard, compute_dtype
from megatron_kd.losses.sizes import tile_rows
from megatron_kd.losses.tiles import tiles

IGNORE_INDEX = -100


def vocab_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    faults: Faults | None = None,
) -> Tensor:
    """-log softmax(logits)[label], for each token.

    Args:
        logits: [..., V/tp], this rank's shard of the vocabulary.
        labels: [...] of integer global ids, the same on every rank.
        group: the tensor-parallel group that shards the vocabulary; None when this rank holds all of it.
        vocab_size: the true vocabulary size over all ranks; padded slots have probability and gradient zero.
        chunk_tokens: tokens worked on at a time; by default what fits the cache (CPU) or fills the device (GPU).
        ignore_index: the label of tokens whose loss and gradient are zero.
        faults: where to note what is wrong with the numbers, for a step whose ranks must all raise together; None
            raises here.

    Returns:
        [...] of float32 (float64 for float64 logits), the same on every rank, differentiable.

    Raises:
        InputError: if the shapes do not match, or a label is neither an id nor `ignore_index`.
        NumericalFault: logits that are not finite, on any rank; not with `faults`, nor the InputError of a label.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(f"labels {tuple(labels.shape)} must have the logits' leading shape {tuple(logits.shape[:-1])}")
    slots = logits.shape[-1]
    shard = VocabShard.of(slots, group, vocab_size)
    chunk = max(1, chunk_tokens or tile_rows(shard.widest, logits.device.type))
    flat_N = labels.reshape(-1)
    loss_N = _CrossEntropy.apply(logits.reshape(-1, slots), flat_N, flat_N != ignore_index, shard, chunk, faults)
    return loss_N.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        label_N: Tensor,
        keep_N: Tensor,
        shard: VocabShard,
        chunk: int,
        faults: Faults | None,
    ) -> Tensor:
        dtype = compute_dtype(logits_NV)
        stats_3N = torch.empty(3, len(logits_NV), dtype=torch.float64, device=logits_NV.device)
        for rows in tiles(len(logits_NV), chunk):
            tile_CV = logits_NV[rows, : shard.width]
            max_C, sum_C = exponentials_(tile_CV.to(dtype, copy=True))
            stats_3N[0, rows] = sum_C.double().log_().add_(max_C)
            stats_3N[1:, rows] = picked_statistics(tile_CV, label_N[rows], shard)
        stats_R3N = shard.gather(stats_3N)
        lse_N, (picked_N, holders_N) = torch.logsumexp(stats_R3N[:, 0], dim=0), stats_R3N[:, 1:].sum(0)
        require([finite(lse_N, "student"), known_labels(holders_N, keep_N)], faults)
        ctx.save_for_backward(logits_NV, label_N, keep_N, lse_N)
        ctx.shard, ctx.chunk = shard, chunk
        return torch.where(keep_N, lse_N - picked_N, 0.0).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, label_N, keep_N, lse_N = ctx.saved_tensors
        shard, dtype = ctx.shard, compute_dtype(logits_NV)
        out_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
        out_NV[:, shard.width :] = 0
        factor_N = torch.where(keep_N, grad_N, 0.0).to(dtype)
        for rows in tiles(len(logits_NV), ctx.chunk):
            prob_CV = (logits_NV[rows, : shard.width].to(dtype) - lse_N[rows, None].to(dtype)).exp_()
            subtract_at_labels_(prob_CV, label_N[rows], shard)
            torch.mul(prob_CV, factor_N[rows, None], out=out_NV[rows, : shard.width])
        return out_NV, None, None, None, None, None


def exponentials_(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits with exp(logits - max) over this shard; return max and sum, [C]. No slots give 0 and 0."""
    if logits_CV.shape[-1] == 0:
        nothing_C = logits_CV.new_zeros(len(logits_CV))
        return nothing_C, nothing_C
    max_C1 = logits_CV.amax(-1, keepdim=True)
    return max_C1.squeeze(-1), logits_CV.sub_(max_C1).exp_().sum(-1)


def picked_statistics(logits_CV: Tensor, label_C: Tensor, shard: VocabShard) -> Tensor:
    """This shard's logit at the label (0 if elsewhere), and whether it holds the label: [2, C] of float64."""
    stats_2C = torch.zeros(2, len(logits_CV), dtype=torch.float64, device=logits_CV.device)
    if shard.width:
        local_C1, mine_C = _local_labels(label_C, shard)
        stats_2C[0] = torch.where(mine_C, logits_CV.gather(-1, local_C1).squeeze(-1), 0.0)
        stats_2C[1] = mine_C
    return stats_2C


def subtract_at_labels_(prob_CV: Tensor, label_C: Tensor, shard: VocabShard) -> Tensor:
    """prob - onehot(label), in place, where this shard holds the label."""
    if shard.width:
        local_C1, mine_C = _local_labels(label_C, shard)
        prob_CV.scatter_add_(-1, local_C1, -mine_C[:, None].to(prob_CV.dtype))
    return prob_CV


def _local_labels(label_C: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    local_C = label_C - shard.start
    mine_C = (local_C >= 0) & (local_C < shard.width)
    return local_C.clamp(0, shard.width - 1)[:, None], mine_C
