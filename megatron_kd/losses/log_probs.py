"""Log-probabilities at a few ids of each token, and of all other ids together, under vocabulary parallelism.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), C tokens of a tile, K ids.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Fault, Faults, finite, require
from megatron_kd.losses.shard import Sharding, VocabShard, compute_dtype
from megatron_kd.losses.tiles import Tiling


def log_probs_at(
    logits: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    faults: Faults | None = None,
    **sharding: Unpack[Sharding],
) -> tuple[Tensor, Tensor]:
    """The student's log-probabilities at given ids, and the log of its mass elsewhere; differentiable, one collective.

    The tail is a log-sum-exp of the other logits, not log(1 - mass), which would cancel as the mass nears 1.

    Args:
        logits: [..., V/tp], this rank's shard.
        ids: [..., K] of distinct global ids, the same on every rank.
        temperature: T; the logits are divided by it.
        faults: counts numerical faults, for a step whose ranks must all raise together; None raises here.
        sharding: see `Sharding`.

    Returns:
        [..., K] and [...]; the tail is -inf, with gradient zero, where the ids are the whole vocabulary.

    Raises:
        InputError: if the shapes do not match.
        NumericalFault: logits that are not finite, on any rank; not with `faults`.
    """
    if ids.shape[:-1] != logits.shape[:-1]:
        raise InputError(f"ids {tuple(ids.shape)} must have the logits' leading shape {tuple(logits.shape[:-1])}")
    tiling = Tiling.of(logits, **sharding)
    logits_NV, ids_NK = logits.reshape(-1, logits.shape[-1]), ids.reshape(-1, ids.shape[-1])
    log_probs_NK, log_tail_N = _LogProbsAt.apply(logits_NV, ids_NK, 1 / temperature, tiling, faults)
    return log_probs_NK.view(ids.shape), log_tail_N.view(logits.shape[:-1])


class _LogProbsAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, ids_NK: Tensor, inv_temperature: float, tiling: Tiling, faults: Faults | None
    ) -> tuple[Tensor, Tensor]:
        log_probs_NK, log_tail_N, rest_N = gathered_log_probs(
            logits_NV, ids_NK, inv_temperature, tiling, side="student", faults=faults
        )
        ctx.save_for_backward(logits_NV, ids_NK, log_probs_NK, log_tail_N, rest_N)
        ctx.inv_temperature, ctx.tiling = inv_temperature, tiling
        return log_probs_NK, log_tail_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor, grad_tail_N: Tensor) -> tuple[Tensor | None, ...]:
        # With G the sum of all K + 1 gradients, r = q / tail the student's distribution outside the K tokens:
        # T * gradient is grad_k - G * q at token k, and r * (grad_tail - G * tail) outside.
        logits_NV, ids_NK, log_probs_NK, log_tail_N, rest_N = ctx.saved_tensors
        shard, inv_temperature = ctx.tiling.shard, ctx.inv_temperature
        no_tail_N = log_tail_N == -torch.inf  # the ids are the whole vocabulary
        grad_tail_N = torch.where(no_tail_N, 0.0, grad_tail_N)
        sum_N1 = (grad_NK.sum(-1) + grad_tail_N)[:, None]
        at_ids_NK = (grad_NK - sum_N1 * log_probs_NK.exp()) * inv_temperature
        outside_N1 = (grad_tail_N[:, None] - sum_N1 * log_tail_N.exp()[:, None]) * inv_temperature
        rest_N1 = torch.where(no_tail_N, torch.inf, rest_N).to(grad_NK.dtype)[:, None]
        out_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
        for rows in ctx.tiling:
            tile_CV = _with_spare_column(logits_NV[rows, : shard.width], inv_temperature)
            tile_CV.sub_(rest_N1[rows]).exp_().mul_(outside_N1[rows])
            tile_CV.scatter_(-1, _slots_or_spare(ids_NK[rows], shard), at_ids_NK[rows])
            out_NV[rows, : shard.width] = tile_CV[:, :-1]
        out_NV[:, shard.width :] = 0
        return out_NV, None, None, None, None


def gathered_log_probs(
    logits_NV: Tensor, ids_NK: Tensor, inv_temperature: float, tiling: Tiling, *, side: Fault, faults: Faults | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities at the ids [N, K], log mass of the others [N], and their log-sum-exp [N]; one collective.

    Every id is on one shard, so that the sum over shards of its logit, 0 where it is not, is the logit.
    """
    k, shard = ids_NK.shape[1], tiling.shard
    stats = torch.empty(k + 1, len(ids_NK), dtype=torch.float64, device=logits_NV.device)
    for rows in tiling:
        tile_CV = _with_spare_column(logits_NV[rows, : shard.width], inv_temperature)
        slots_CK = _slots_or_spare(ids_NK[rows], shard)
        stats[:k, rows] = tile_CV.gather(-1, slots_CK).T.double()
        tile_CV[:, -1] = -torch.inf
        stats[k, rows] = torch.logsumexp(tile_CV.scatter_(-1, slots_CK, -torch.inf), -1).double()
    every = shard.gather(stats)
    at_ids_NK, rest_N = every[:, :k].sum(0).T, torch.logsumexp(every[:, k], dim=0)
    lse_N = torch.logsumexp(torch.cat((at_ids_NK, rest_N[:, None]), -1), -1)
    require([finite(lse_N, side)], faults)
    dtype = compute_dtype(logits_NV)
    return (at_ids_NK - lse_N[:, None]).to(dtype), (rest_N - lse_N).to(dtype), rest_N


def _with_spare_column(logits_CV: Tensor, inv_temperature: float) -> Tensor:
    """logits / T in a new tensor [C, V + 1]; the last column, zero, is that of ids on other shards.

    With it, gather and scatter take the ids as they are: without a mask, and without a case for a shard of padding.
    """
    out_CV = logits_CV.new_zeros(len(logits_CV), logits_CV.shape[1] + 1, dtype=compute_dtype(logits_CV))
    out_CV[:, :-1] = logits_CV
    return out_CV.mul_(inv_temperature)


def _slots_or_spare(ids_NK: Tensor, shard: VocabShard) -> Tensor:
    """This shard's slots of global ids [N, K]; the spare column for ids of other shards."""
    slots_NK, here_NK = shard.find(ids_NK)
    return torch.where(here_NK, slots_NK, shard.width)
