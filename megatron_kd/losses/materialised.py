"""Vocabulary-parallel divergences of materialised logits: exact, chunked over tokens, one or two collectives.

Forward: per tile, this shard's row statistics; one all-gather of them makes the normalisers, and for the KLs also the
value. The other kinds read the tiles a second time (the same time when the vocabulary is not sharded) and sum value
and slope with one all-reduce. Backward: the probabilities again, tile by tile, and no collective. Recomputing costs
two exponentials an element and saves keeping a gradient in the student's dtype, which would round it a second time
and underflow under float16 loss scaling.

Shapes: N tokens, C tokens of a tile, V vocabulary (the logical size, also on a shard).
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.losses.faults import Faults, finite_divergence, require
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import Sharding, compute_dtype, require_one_shape
from megatron_kd.losses.tiles import Normalisers, Tile, Tiling, combine


def materialised_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    divergence: Divergence,
    *,
    faults: Faults | None = None,
    **sharding: Unpack[Sharding],
) -> Tensor:
    """Divergence of the student's from the teacher's next-token distribution, for each token.

    The gradient is with respect to the student only, exact for this rank's shard, and in the student's dtype;
    arithmetic is float32 (float64 for float64 logits).

    Args:
        student_logits: [..., V/tp], this rank's shard of the vocabulary; any leading shape.
        teacher_logits: the same shape, any floating dtype, never given a gradient.
        divergence: which one, and its parameters.
        faults: counts numerical faults, for a step whose ranks must all raise together; None raises here.
        sharding: see `Sharding`.

    Returns:
        The divergence, [...] of float32 (float64 for float64 logits), the same on every rank, differentiable.

    Raises:
        InputError: shapes that differ.
        NumericalFault: logits that are not finite, on any rank; not with `faults`.
    """
    require_one_shape(student_logits, teacher_logits)
    tiling = Tiling.of(student_logits, **sharding)
    slots = student_logits.shape[-1]
    value_N = _Divergence.apply(
        student_logits.reshape(-1, slots), teacher_logits.detach().reshape(-1, slots), divergence, tiling, faults
    )
    return value_N.view(student_logits.shape[:-1])


class _Divergence(torch.autograd.Function):
    """Keeps both logits and the normalisers for the backward: four numbers per token beside what exists anyway."""

    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_NV: Tensor, divergence: Divergence, tiling: Tiling, faults: Faults | None
    ) -> Tensor:
        dtype, width = compute_dtype(student_NV), tiling.shard.width
        tile = Tile(divergence, tiling.chunk, width, dtype)
        norms = _normalisers(student_NV[:, :width], teacher_NV[:, :width], tile, tiling)
        require(finite_divergence(norms.student_lse, norms.teacher_lse, norms.value), faults)
        ctx.save_for_backward(student_NV, teacher_NV, *norms)
        ctx.divergence, ctx.tiling = divergence, tiling
        return (norms.value * divergence.scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        student_NV, teacher_NV, *saved = ctx.saved_tensors
        norms, divergence, width = Normalisers(*saved), ctx.divergence, ctx.tiling.shard.width
        out_NV = torch.empty_like(student_NV, memory_format=torch.contiguous_format)
        out_NV[:, width:] = 0
        dtype = compute_dtype(student_NV)
        tile = Tile(divergence, ctx.tiling.chunk, width, dtype)
        factor_N1 = (grad_N * (divergence.scale * divergence.inv_temperature)).to(dtype)[:, None]
        slope_N1 = norms.slope.to(dtype)[:, None]
        for rows in ctx.tiling:
            probs = tile.normalise(student_NV[rows, :width], teacher_NV[rows, :width], norms.of(rows))
            gradient_CV = tile.form.gradient_(probs, slope_N1[rows])
            torch.mul(gradient_CV, factor_N1[rows], out=out_NV[rows, :width])
        return out_NV, None, None, None, None


def _normalisers(student_NV: Tensor, teacher_NV: Tensor, tile: Tile, tiling: Tiling) -> Normalisers:
    """Normalisers, value and slope of all tokens, in as few passes and collectives as the form allows."""
    if tile.form.expectation_under is not None:
        return _one_pass(student_NV, teacher_NV, tile, tiling)
    if tiling.shard.world == 1:
        return _unsharded(student_NV, teacher_NV, tile, tiling)
    return _two_passes(student_NV, teacher_NV, tile, tiling)


def _one_pass(student_NV: Tensor, teacher_NV: Tensor, tile: Tile, tiling: Tiling) -> Normalisers:
    """Normalisers after one pass and one collective; for the KLs all of them."""
    stats_3N = torch.empty(3, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiling:
        stats_3N[:, rows] = tile.load(student_NV[rows], teacher_NV[rows])
    return combine(tiling.shard.gather(stats_3N), tile.form)


def _two_passes(student_NV: Tensor, teacher_NV: Tensor, tile: Tile, tiling: Tiling) -> Normalisers:
    """Value and slope by a second pass and a second collective: they need probabilities over all shards."""
    norms = _one_pass(student_NV, teacher_NV, tile, tiling)
    sums_2N = torch.empty(2, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiling:
        probs = tile.normalise(student_NV[rows], teacher_NV[rows], norms.of(rows))
        sums_2N[0, rows], sums_2N[1, rows] = tile.form.sums(probs)
    tiling.shard.sum_(sums_2N)
    return norms._replace(value=sums_2N[0], slope=sums_2N[1])


def _unsharded(student_NV: Tensor, teacher_NV: Tensor, tile: Tile, tiling: Tiling) -> Normalisers:
    """The same in one pass: a tile's normalisers need no other rank, so it is finished while it is in the cache."""
    norms_4N = torch.empty(4, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiling:
        stats_3C = tile.load(student_NV[rows], teacher_NV[rows])
        norms = combine(stats_3C[None], tile.form)
        norms_4N[0, rows], norms_4N[1, rows] = norms.student_lse, norms.teacher_lse
        norms_4N[2, rows], norms_4N[3, rows] = tile.form.sums(tile.renormalise(norms))
    return Normalisers(*norms_4N)
