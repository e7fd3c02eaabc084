"""A tile: a few tokens of both models' logits, worked on in buffers that fit the cache, or in place.

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


class Normalisers(NamedTuple):
    """Per-token numbers over all shards, float64: the log-sum-exp of both models, the value D and the slope A."""

    student_lse: Tensor
    teacher_lse: Tensor
    value: Tensor
    slope: Tensor


def tiles(tokens: int, chunk: int) -> list[slice]:
    """Slices of up to `chunk` rows that cover `tokens` rows."""
    return [slice(i, min(i + chunk, tokens)) for i in range(0, tokens, chunk)]


class Tile:
    """Tiles of up to `tokens` x `width` logits of both models, in at most three buffers, each made when it is needed.

    The student's buffer holds logits, then q; the teacher's logits, then the log ratio; the third holds p. The row
    statistics are float64: they are a few numbers a token, and the differences of log-sum-exps that make a divergence
    cancel.

    Args:
        tokens, width: the largest tile.
        dtype: that of the arithmetic.
        overwrite: whether logits that have that dtype may be worked on in place, and need no buffer.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, overwrite: bool = False):
        self.capacity, self.width, self._dtype, self._overwrite = tokens, width, dtype, overwrite
        self._buffers: dict[str, Tensor] = {}

    def load(self, student_CV: Tensor, teacher_CV: Tensor, inv_temperature: float, kind: Kind) -> Tensor:
        """Load logits, and return this shard's statistics, [3, C]: two log-sum-exps, E[log p - log q] (0 if unused)."""
        stats_3C = torch.zeros(3, student_CV.shape[0], dtype=torch.float64, device=student_CV.device)
        q, r = self._working("student", student_CV), self._working("teacher", teacher_CV)
        p = self._buffer("p", student_CV)
        self._loaded = q, p, r
        if self.width == 0:
            stats_3C[:2] = -torch.inf
            self._max_2C = torch.zeros_like(stats_3C[:2])
            return stats_3C
        max_q_C, max_p_C = _shifted(student_CV, inv_temperature, q), _shifted(teacher_CV, inv_temperature, r)
        self._max_2C = torch.stack((max_q_C, max_p_C))
        sum_p_C = torch.exp(r, out=p).sum(-1)
        r.sub_(q)
        if kind.expectation_under == "teacher":
            moment_C = r.mul_(p).sum(-1)
        sum_q_C = q.exp_().sum(-1)
        if kind.expectation_under == "student":
            moment_C = torch.mul(r, q, out=p).sum(-1)
        sums_2C = torch.stack((sum_q_C, sum_p_C)).double()
        torch.add(self._max_2C, sums_2C.log(), out=stats_3C[:2])
        if kind.expectation_under is not None:
            side = 1 if kind.expectation_under == "teacher" else 0
            stats_3C[2] = moment_C / sums_2C[side] + (max_p_C - max_q_C)
        return stats_3C

    def renormalise(self, norms: Normalisers, kind: Kind) -> Probabilities:
        """What `kind` reads of the tile loaded last, without another exponential an element."""
        q, p, r = self._loaded
        shift_2C = self._max_2C - torch.stack((norms.student_lse, norms.teacher_lse))
        factor_2C1 = shift_2C.exp().to(self._dtype)[..., None]
        q.mul_(factor_2C1[0])
        return Probabilities(
            q,
            p.mul_(factor_2C1[1]) if kind.needs_teacher else None,
            r.add_((shift_2C[1] - shift_2C[0]).to(self._dtype)[:, None]) if kind.needs_ratio else None,
        )

    def normalise(
        self, student_CV: Tensor, teacher_CV: Tensor, inv_temperature: float, norms: Normalisers, kind: Kind
    ) -> Probabilities:
        """What `kind` reads of a tile whose normalisers are known."""
        q, r = self._working("student", student_CV), self._working("teacher", teacher_CV)
        _normalised(student_CV, inv_temperature, norms.student_lse, q)
        _normalised(teacher_CV, inv_temperature, norms.teacher_lse, r)
        if not kind.needs_ratio:
            return Probabilities(q.exp_(), r.exp_(), None)
        p = torch.exp(r, out=self._buffer("p", student_CV)) if kind.needs_teacher else None
        r.sub_(q)
        return Probabilities(q.exp_(), p, r)

    def _working(self, name: str, logits_CV: Tensor) -> Tensor:
        """Where logits are worked on: themselves or a buffer."""
        if self._overwrite and logits_CV.dtype == self._dtype:
            return logits_CV
        return self._buffer(name, logits_CV)

    def _buffer(self, name: str, like_CV: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = like_CV.new_empty(self.capacity, self.width, dtype=self._dtype)
        return self._buffers[name][: like_CV.shape[0]]


def _shifted(logits_CV: Tensor, inv_temperature: float, out_CV: Tensor) -> Tensor:
    """Write logits / T - max, which may be in place; return the row maxima of logits / T, float64 [C]."""
    source_CV = logits_CV if logits_CV.dtype == out_CV.dtype else out_CV.copy_(logits_CV)
    max_C1 = source_CV.amax(-1, keepdim=True).mul_(inv_temperature)
    torch.add(-max_C1, source_CV, alpha=inv_temperature, out=out_CV)
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
