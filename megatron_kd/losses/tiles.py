"""A tile: a few tokens of both models' logits, worked on in preallocated buffers that fit the cache.

Life of a tile: `load` scales the logits by 1 / T and exponentiates them against this shard's row maximum, which gives
the row statistics; once the statistics of all shards are known, `renormalise` turns the exponentials into
probabilities in place. `normalise` does both at once where the normalisers are known before.

Shapes: C tokens of the tile, V vocabulary (the logical size, also on a shard), R ranks, K statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_kd.losses.kinds import Kind, Probabilities

_CPU_TILE_BYTES = 4 << 20  # of one buffer, four are in use: smaller ones pay for more thread barriers than cache saves
_GPU_TILE_BYTES = 1 << 27  # enough elements to fill the device, few enough launches


class Normalisers(NamedTuple):
    """Per-token numbers over all shards, float64: the log-sum-exp of both models, the value D and the slope A."""

    student_lse: Tensor
    teacher_lse: Tensor
    value: Tensor
    slope: Tensor


def default_chunk_tokens(width: int, device: torch.device, itemsize: int = 4) -> int:
    """Tokens whose float32 logits of `width` slots fill one tile buffer on this device; at least 1."""
    tile_bytes = _CPU_TILE_BYTES if device.type == "cpu" else _GPU_TILE_BYTES
    return max(1, tile_bytes // (max(width, 1) * itemsize))


def tiles(tokens: int, chunk: int) -> list[slice]:
    """Slices of up to `chunk` rows that cover `tokens` rows."""
    return [slice(i, min(i + chunk, tokens)) for i in range(0, tokens, chunk)]


class Tile:
    """Buffers for tiles of up to `tokens` x `width` logits of both models.

    The row statistics are float64: they are a few numbers a token, and the differences of log-sum-exps that make a
    divergence cancel.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, device: torch.device):
        self._logs = torch.empty(2, tokens, width, dtype=dtype, device=device)
        self._probs = torch.empty(2, tokens, width, dtype=dtype, device=device)
        self.capacity, self.width = tokens, width
        self.tokens = 0

    def load(self, student_CV: Tensor, teacher_CV: Tensor, inv_temperature: float, kind: Kind) -> Tensor:
        """Load logits, and return this shard's statistics, [3, C]: two log-sum-exps, E[log p - log q] (0 if unused)."""
        self.tokens = student_CV.shape[0]
        stats_3C = torch.zeros(3, self.tokens, dtype=torch.float64, device=student_CV.device)
        if self.width == 0:
            stats_3C[:2] = -torch.inf
            self._max_2C = torch.zeros_like(stats_3C[:2])
            return stats_3C
        log_q, log_p, q, p = self._views()
        max_q_C = _exponentials(student_CV, inv_temperature, log_q, q)
        max_p_C = _exponentials(teacher_CV, inv_temperature, log_p, p)
        self._max_2C = torch.stack((max_q_C, max_p_C))
        sums_2C = torch.stack((q.sum(-1), p.sum(-1))).double()
        torch.add(self._max_2C, sums_2C.log(), out=stats_3C[:2])
        ratio_CV = log_p.sub_(log_q)
        if kind.expectation_under is not None:
            side = 1 if kind.expectation_under == "teacher" else 0
            moment_C = torch.mul(ratio_CV, (q, p)[side], out=log_q).sum(-1) / sums_2C[side]
            stats_3C[2] = moment_C + (max_p_C - max_q_C)
        return stats_3C

    def renormalise(self, norms: Normalisers, with_ratio: bool = True) -> Probabilities:
        """Both models' probabilities of the tile loaded last, without another exponential an element."""
        _, log_p, q, p = self._views()
        dtype = q.dtype
        shift_2C = self._max_2C - torch.stack((norms.student_lse, norms.teacher_lse))
        factor_2C1 = shift_2C.exp().to(dtype)[..., None]
        q.mul_(factor_2C1[0])
        p.mul_(factor_2C1[1])
        return Probabilities(q, p, log_p.add_((shift_2C[1] - shift_2C[0]).to(dtype)[:, None]) if with_ratio else None)

    def normalise(
        self,
        student_CV: Tensor,
        teacher_CV: Tensor,
        inv_temperature: float,
        norms: Normalisers,
        with_ratio: bool = True,
    ) -> Probabilities:
        """Both models' probabilities of a tile whose normalisers are known."""
        self.tokens = student_CV.shape[0]
        log_q, log_p, q, p = self._views()
        _normalised(student_CV, inv_temperature, norms.student_lse, log_q)
        _normalised(teacher_CV, inv_temperature, norms.teacher_lse, log_p)
        if not with_ratio:
            return Probabilities(log_q.exp_(), log_p.exp_(), None)
        torch.exp(log_q, out=q)
        torch.exp(log_p, out=p)
        return Probabilities(q, p, log_p.sub_(log_q))

    def _views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logs, probs = self._logs[:, : self.tokens], self._probs[:, : self.tokens]
        return logs[0], logs[1], probs[0], probs[1]


def _exponentials(logits_CV: Tensor, inv_temperature: float, shifted_CV: Tensor, exp_CV: Tensor) -> Tensor:
    """Write logits / T - max and its exponential; return the row maxima of logits / T, float64 [C]."""
    source_CV = logits_CV if logits_CV.dtype == shifted_CV.dtype else shifted_CV.copy_(logits_CV)
    max_C1 = source_CV.amax(-1, keepdim=True).mul_(inv_temperature)
    torch.add(-max_C1, source_CV, alpha=inv_temperature, out=shifted_CV)
    torch.exp(shifted_CV, out=exp_CV)
    return max_C1.squeeze(-1).double()


def _normalised(logits_CV: Tensor, inv_temperature: float, lse_C: Tensor, log_CV: Tensor) -> None:
    """Write the log-probabilities logits / T - lse."""
    source_CV = logits_CV if logits_CV.dtype == log_CV.dtype else log_CV.copy_(logits_CV)
    torch.add(-lse_C[:, None].to(log_CV.dtype), source_CV, alpha=inv_temperature, out=log_CV)


def combine(stats_RKC: Tensor, kind: Kind) -> Normalisers:
    """Normalisers of all shards from each shard's `Tile.load` statistics.

    Value and slope are final for the kinds with `expectation_under`; the others need a second pass for them.
    """
    lse_R2C, moment_RC = stats_RKC[:, :2], stats_RKC[:, 2]
    lse_2C = torch.logsumexp(lse_R2C, dim=0)
    student_lse_C, teacher_lse_C = lse_2C[0], lse_2C[1]
    if kind.expectation_under is None:
        nothing_C = torch.zeros_like(student_lse_C)
        return Normalisers(student_lse_C, teacher_lse_C, nothing_C, nothing_C)
    side = 1 if kind.expectation_under == "teacher" else 0
    ratio_C = (torch.exp(lse_R2C[:, side] - lse_2C[side]) * moment_RC).sum(0) + (student_lse_C - teacher_lse_C)
    value_C = ratio_C if side == 1 else -ratio_C
    return Normalisers(student_lse_C, teacher_lse_C, value_C, value_C)
