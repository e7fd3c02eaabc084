"""A tile: a few tokens of both models' logits, worked on in buffers that fit the cache, or in place.

Life of a tile: `load` scales the logits by 1 / T and exponentiates them against this shard's row maximum, which gives
the row statistics; once the statistics of all shards are known, `renormalise` turns the exponentials into
probabilities in place. `normalise` does both at once where the normalisers are known before.

Shapes: N tokens, C tokens of a tile, V vocabulary (the logical size, also on a shard), R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.losses.closed_forms import ClosedForm, Probabilities, closed_form
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import VocabShard
from megatron_kd.losses.sizes import tile_rows


class Normalisers(NamedTuple):
    """Per-token numbers over all shards, float64 [N]: both models' log-sum-exp, the value D and the slope A."""

    student_lse: Tensor
    teacher_lse: Tensor
    value: Tensor
    slope: Tensor

    def of(self, rows: slice) -> Normalisers:
        """Those of some tokens."""
        return Normalisers(*(numbers_N[rows] for numbers_N in self))


def tiles(tokens: int, chunk: int) -> list[slice]:
    """Slices of up to `chunk` rows that cover `tokens` rows."""
    return [slice(i, min(i + chunk, tokens)) for i in range(0, tokens, chunk)]


@dataclass(frozen=True)
class Tiling:
    """How a loss goes through materialised logits [N, V/tp]: over this rank's true slots, some tokens at a time."""

    shard: VocabShard
    tokens: int
    chunk: int

    @classmethod
    def of(
        cls,
        logits: Tensor,
        group: dist.ProcessGroup | None = None,
        vocab_size: int | None = None,
        chunk_tokens: int | None = None,
    ) -> Tiling:
        """That of `logits` [..., V/tp]; see `Sharding`.

        Raises:
            InputError: if `vocab_size` does not fit the shards.
        """
        shard = VocabShard.of(logits.shape[-1], group, vocab_size)
        tokens = logits.shape[:-1].numel()
        chunk = chunk_tokens or tile_rows(shard.widest, logits.device.type)
        return cls(shard, tokens, max(1, min(chunk, tokens)))

    def __iter__(self) -> Iterator[slice]:
        """The tokens of each tile."""
        return iter(tiles(self.tokens, self.chunk))


class Tile:
    """Tiles of up to `tokens` x `width` logits of both models, in at most three buffers, each made when it is needed.

    The student's buffer holds logits, then q; the teacher's logits, then the log ratio; the third holds p. Each step
    overwrites what no later step reads, so that three buffers are enough for the whole life of a tile.

    Args:
        divergence: gives the closed form and the temperature.
        tokens, width: the largest tile.
        dtype: that of the arithmetic.
        overwrite: whether logits that have that dtype may be worked on in place, and need no buffer.
    """

    def __init__(self, divergence: Divergence, tokens: int, width: int, dtype: torch.dtype, overwrite: bool = False):
        self.form, self.capacity, self.width = closed_form(divergence), tokens, width
        self._inv_temperature, self._dtype, self._overwrite = divergence.inv_temperature, dtype, overwrite
        self._buffers: dict[str, Tensor] = {}

    def load(self, student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
        """Load logits, [C, width] each, and return this shard's statistics for `combine`, [3, C] of float64.

        They are both models' log-sum-exp and, for a form with `expectation_under`, the expectation of the difference of
        the logits, (teacher - student) / T, under the shard's part of that distribution (else 0). They are float64: a
        few numbers per token cost nothing, and a divergence is a small difference of large log-sum-exps.
        """
        stats_3C = torch.zeros(3, student_CV.shape[0], dtype=torch.float64, device=student_CV.device)
        q, r = self._working("student", student_CV), self._working("teacher", teacher_CV)
        p = self._buffer("p", student_CV)
        self._loaded = q, p, r
        if self.width == 0:  # a shard of padding only: log 0, and no row that has a maximum
            stats_3C[:2] = -torch.inf
            self._max_2C = torch.zeros_like(stats_3C[:2])
            return stats_3C
        max_q_C, max_p_C = self._shifted(student_CV, q), self._shifted(teacher_CV, r)
        self._max_2C = torch.stack((max_q_C, max_p_C))
        sum_p_C = torch.exp(r, out=p).sum(-1)
        r.sub_(q)
        if self.form.expectation_under == "teacher":
            moment_C = r.mul_(p).sum(-1)
        sum_q_C = q.exp_().sum(-1)
        if self.form.expectation_under == "student":
            moment_C = torch.mul(r, q, out=p).sum(-1)
        sums_2C = torch.stack((sum_q_C, sum_p_C)).double()
        torch.add(self._max_2C, sums_2C.log(), out=stats_3C[:2])
        if self.form.expectation_under is not None:
            side = 1 if self.form.expectation_under == "teacher" else 0
            stats_3C[2] = moment_C / sums_2C[side] + (max_p_C - max_q_C)
        return stats_3C

    def renormalise(self, norms: Normalisers) -> Probabilities:
        """The form's inputs, [C, V], of the tile loaded last: its exponentials times exp(shard's max - lse) per row.

        That is one multiplication per element; exponentiating logits - lse again would cost several times as much.
        """
        q, p, r = self._loaded
        shift_2C = self._max_2C - torch.stack((norms.student_lse, norms.teacher_lse))
        factor_2C1 = shift_2C.exp().to(self._dtype)[..., None]
        q.mul_(factor_2C1[0])
        return Probabilities(
            q,
            p.mul_(factor_2C1[1]) if self.form.needs_teacher else None,
            r.add_((shift_2C[1] - shift_2C[0]).to(self._dtype)[:, None]) if self.form.needs_ratio else None,
        )

    def normalise(self, student_CV: Tensor, teacher_CV: Tensor, norms: Normalisers) -> Probabilities:
        """The form's inputs, [C, V], of logits, [C, width] each, whose normalisers are known."""
        q, r = self._working("student", student_CV), self._working("teacher", teacher_CV)
        self._normalised(student_CV, norms.student_lse, q)
        self._normalised(teacher_CV, norms.teacher_lse, r)
        if not self.form.needs_ratio:
            return Probabilities(q.exp_(), r.exp_(), None)
        p = torch.exp(r, out=self._buffer("p", student_CV)) if self.form.needs_teacher else None
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

    def _shifted(self, logits_CV: Tensor, out_CV: Tensor) -> Tensor:
        """Write logits / T - max, which may be in place; return the row maxima of logits / T, float64 [C].

        Without the maximum the exponentials of float32 overflow from a logit of 89 on.
        """
        source_CV = logits_CV if logits_CV.dtype == out_CV.dtype else out_CV.copy_(logits_CV)
        max_C1 = source_CV.amax(-1, keepdim=True).mul_(self._inv_temperature)
        torch.add(-max_C1, source_CV, alpha=self._inv_temperature, out=out_CV)
        return max_C1.squeeze(-1).double()

    def _normalised(self, logits_CV: Tensor, lse_C: Tensor, log_CV: Tensor) -> None:
        """Write the log-probabilities logits / T - lse."""
        source_CV = logits_CV if logits_CV.dtype == log_CV.dtype else log_CV.copy_(logits_CV)
        torch.add(-lse_C[:, None].to(log_CV.dtype), source_CV, alpha=self._inv_temperature, out=log_CV)


def combine(stats_R3C: Tensor, form: ClosedForm) -> Normalisers:
    """Normalisers of all shards from each shard's `Tile.load` statistics, [C] each.

    Value and slope are final for the forms with `expectation_under`; the others need a second pass for them.
    """
    lse_R2C, moment_RC = stats_R3C[:, :2], stats_R3C[:, 2]
    lse_2C = torch.logsumexp(lse_R2C, dim=0)
    student_lse_C, teacher_lse_C = lse_2C[0], lse_2C[1]
    if form.expectation_under is None:
        nothing_C = torch.zeros_like(student_lse_C)
        return Normalisers(student_lse_C, teacher_lse_C, nothing_C, nothing_C)
    side = 1 if form.expectation_under == "teacher" else 0
    # A shard's expectation counts by the shard's share of the mass, and log p - log q is the difference of the logits
    # less that of the normalisers.
    ratio_C = (torch.exp(lse_R2C[:, side] - lse_2C[side]) * moment_RC).sum(0) + (student_lse_C - teacher_lse_C)
    value_C = ratio_C if side == 1 else -ratio_C
    return Normalisers(student_lse_C, teacher_lse_C, value_C, value_C)
