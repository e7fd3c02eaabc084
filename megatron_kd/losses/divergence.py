"""Vocabulary-parallel divergences of materialised logits: exact, chunked over tokens, one or two collectives.

Forward: per tile, this shard's row statistics; one all-gather of them makes the normalisers, and for the KLs also the
value. The other kinds read the tiles a second time (the same time when the vocabulary is not sharded) and sum value
and slope with one all-reduce. Backward: the probabilities again, tile by tile, and no collective. Recomputing costs
two exponentials an element and saves keeping a gradient in the student's dtype, which would round it a second time
and underflow under float16 loss scaling.

Shapes: N tokens, V vocabulary (the logical size, also on a shard).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Faults, finite_divergence, one_shape, require
from megatron_kd.losses.kinds import Kind, make_kind
from megatron_kd.losses.shard import VocabShard, compute_dtype
from megatron_kd.losses.sizes import tile_rows
from megatron_kd.losses.tiles import Normalisers, Tile, combine, tiles


def vocab_parallel_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    chunk_tokens: int | None = None,
    vocab_size: int | None = None,
    temperature_squared: bool = False,
    beta: float = 0.5,
    alpha: float = 0.1,
    faults: Faults | None = None,
) -> Tensor:
    """Divergence of the student's from the teacher's next-token distribution, for each token.

    Formulas and their sources are in `megatron_kd.losses.kinds`. The gradient is with respect to the student only,
    exact for this rank's shard, and in the student's dtype; arithmetic is float32 (float64 for float64 logits).

    Args:
        student_logits: [..., V/tp], this rank's shard of the vocabulary; any leading shape.
        teacher_logits: the same shape, any floating dtype, never given a gradient.
        kind: one of `kinds.KINDS`.
        temperature: T; both logits are divided by it.
        group: the tensor-parallel group that shards the vocabulary; None when this rank holds all of it.
        chunk_tokens: tokens worked on at a time; by default what fits the cache (CPU) or fills the device (GPU).
        vocab_size: the true vocabulary size over all ranks. Slots at or above it are padding: probability zero,
            gradient zero. Where teacher and student vocabularies differ, the number of ids they share.
        temperature_squared: multiply by T^2, so that gradients keep their size as T grows (Hinton et al. 2015).
        beta: weight of the teacher in `kind="jsd"`.
        alpha: skew of the skewed KLs.
        faults: where to note what is wrong with the numbers, for a step whose ranks must all raise together; None
            raises here.

    Returns:
        The divergence, [...] of float32 (float64 for float64 logits), the same on every rank, differentiable.

    Raises:
        InputError: shapes that differ, a temperature that is not positive, or an unknown kind.
        NumericalFault: logits that are not finite, on any rank; not with `faults`.
    """
    one_shape(student_logits, teacher_logits)
    if not temperature > 0:
        raise InputError(f"temperature={temperature} must be positive")
    slots = student_logits.shape[-1]
    shard = VocabShard.of(slots, group, vocab_size)
    chunk = chunk_tokens or tile_rows(shard.widest, student_logits.device.type)
    chunk = max(1, min(chunk, student_logits.numel() // slots))
    scale = temperature**2 if temperature_squared else 1.0
    value_N = _Divergence.apply(
        student_logits.reshape(-1, slots),
        teacher_logits.detach().reshape(-1, slots),
        make_kind(kind, beta=beta, alpha=alpha),
        1 / temperature,
        scale,
        shard,
        chunk,
        faults,
    )
    return value_N.view(student_logits.shape[:-1])


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        teacher_NV: Tensor,
        kind: Kind,
        inv_temperature: float,
        scale: float,
        shard: VocabShard,
        chunk: int,
        faults: Faults | None,
    ) -> Tensor:
        dtype = compute_dtype(student_NV)
        tile = Tile(chunk, shard.width, dtype)
        args = (student_NV[:, : shard.width], teacher_NV[:, : shard.width], kind, inv_temperature, shard, tile)
        two_passes = _two_pass_statistics if shard.world > 1 else _unsharded_statistics
        norms = _statistics(*args) if kind.expectation_under else two_passes(*args)
        require(finite_divergence(norms.student_lse, norms.teacher_lse, norms.value), faults)
        ctx.save_for_backward(student_NV, teacher_NV, *norms)
        ctx.kind, ctx.inv_temperature, ctx.scale, ctx.shard, ctx.chunk = kind, inv_temperature, scale, shard, chunk
        return (norms.value * scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        student_NV, teacher_NV, *saved = ctx.saved_tensors
        norms, width = Normalisers(*saved), ctx.shard.width
        out_NV = torch.empty_like(student_NV, memory_format=torch.contiguous_format)
        out_NV[:, width:] = 0
        dtype = compute_dtype(student_NV)
        tile = Tile(ctx.chunk, width, dtype)
        factor_N1 = (grad_N * (ctx.scale * ctx.inv_temperature)).to(dtype)[:, None]
        slope_N1 = norms.slope.to(dtype)[:, None]
        for rows in tiles(len(student_NV), ctx.chunk):
            probs = tile.normalise(
                student_NV[rows, :width],
                teacher_NV[rows, :width],
                ctx.inv_temperature,
                Normalisers(*(t[rows] for t in norms)),
                ctx.kind,
            )
            gradient_CV = ctx.kind.gradient_(probs, slope_N1[rows])
            torch.mul(gradient_CV, factor_N1[rows], out=out_NV[rows, :width])
        return out_NV, None, None, None, None, None, None, None


def _statistics(
    student_NV: Tensor, teacher_NV: Tensor, kind: Kind, inv_temperature: float, shard: VocabShard, tile: Tile
) -> Normalisers:
    """Normalisers after one pass and one collective."""
    stats_3N = torch.empty(3, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiles(len(student_NV), tile.capacity):
        stats_3N[:, rows] = tile.load(student_NV[rows], teacher_NV[rows], inv_temperature, kind)
    return combine(shard.gather(stats_3N), kind)


def _two_pass_statistics(
    student_NV: Tensor, teacher_NV: Tensor, kind: Kind, inv_temperature: float, shard: VocabShard, tile: Tile
) -> Normalisers:
    """Normalisers, and value and slope by a second pass and a second collective."""
    norms = _statistics(student_NV, teacher_NV, kind, inv_temperature, shard, tile)
    sums_2N = torch.empty(2, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiles(len(student_NV), tile.capacity):
        known = Normalisers(*(t[rows] for t in norms))
        probs = tile.normalise(student_NV[rows], teacher_NV[rows], inv_temperature, known, kind)
        sums_2N[0, rows], sums_2N[1, rows] = kind.sums(probs)
    shard.sum_(sums_2N)
    return norms._replace(value=sums_2N[0], slope=sums_2N[1])


def _unsharded_statistics(
    student_NV: Tensor, teacher_NV: Tensor, kind: Kind, inv_temperature: float, shard: VocabShard, tile: Tile
) -> Normalisers:
    """The same in one pass, where a tile's normalisers need no other rank."""
    norms_4N = torch.empty(4, len(student_NV), dtype=torch.float64, device=student_NV.device)
    for rows in tiles(len(student_NV), tile.capacity):
        stats_3C = tile.load(student_NV[rows], teacher_NV[rows], inv_temperature, kind)
        norms = combine(stats_3C[None], kind)
        norms_4N[0, rows], norms_4N[1, rows] = norms.student_lse, norms.teacher_lse
        norms_4N[2, rows], norms_4N[3, rows] = kind.sums(tile.renormalise(norms, kind))
    return Normalisers(*norms_4N)
