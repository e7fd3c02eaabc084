"""Losses of one tile of logits that exists only for a moment, and their gradient written over the student's logits.

Divergence and LM loss read the same logits; their row statistics travel in one collective a tile (two for kinds that
are not a KL). `fused_metrics` reads them too, in evaluation.

Shapes: N tokens, C tokens of a tile, V vocabulary (the logical size, also on a shard), R ranks, K statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_kd.losses.closed_forms import Probabilities
from megatron_kd.losses.cross_entropy import exponentials_, subtract_at_labels_
from megatron_kd.losses.fused_inputs import Labels, TokenInputs
from megatron_kd.losses.fused_metrics import TileMetrics
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import VocabShard
from megatron_kd.losses.tiles import Normalisers, Tile, combine


@dataclass(frozen=True)
class Terms:
    """The losses of a token, and the ids they are over.

    Attributes:
        divergence: the divergence; its temperature is not the LM loss's, which is 1.
        shared: the ids that teacher and student share, over which the divergence is taken.
        student: the student's own ids, over which the LM loss is taken; they include `shared`.
    """

    divergence: Divergence
    shared: VocabShard
    student: VocabShard

    @property
    def one_softmax(self) -> bool:
        """Whether both losses read the same softmax of the student, so that its exponentials are computed once."""
        return self.divergence.temperature == 1 and self.shared == self.student


class TokenOutputs:
    """Per-token results, float64 [N]; losses and metrics that are not computed stay zero.

    Attributes:
        divergence, lm: the losses.
        student_lse, teacher_lse: log-sum-exps of logits / T over the shared ids, by which non-finite logits are found.
        lm_lse: the student's log-sum-exp at temperature 1 over its own ids.
        holders: the number of shards that hold the label.
        kl, rank: those of `fused_metrics`.
    """

    def __init__(self, tokens: int, device: torch.device):
        rows = torch.zeros(8, tokens, dtype=torch.float64, device=device)
        self.divergence, self.student_lse, self.teacher_lse, self.lm, self.lm_lse, self.holders = rows[:6]
        self.kl, self.rank = rows[6:]


class TileLosses:
    """Computes tiles of up to `tokens` tokens, and writes their per-token results to `outputs`.

    It works in buffers of its own and on the logits themselves. It is made for one chunk: its buffers are then not held
    beside those of the matrix products.
    """

    def __init__(
        self,
        terms: Terms,
        inputs: TokenInputs,
        outputs: TokenOutputs,
        tokens: int,
        dtype: torch.dtype,
        with_metrics: bool = False,
    ):
        self.terms, self.inputs, self.outputs = terms, inputs, outputs
        self._metrics = TileMetrics(terms.shared, tokens, dtype) if with_metrics else None
        self._tile = Tile(terms.divergence, tokens, terms.shared.width, dtype, overwrite=True)
        self._lm = torch.empty(
            tokens, terms.student.width if inputs.labels is not None else 0, dtype=dtype, device=inputs.kd_factor.device
        )

    def run(self, student_CV: Tensor, teacher_CV: Tensor, rows: slice, with_gradient: bool) -> None:
        """Fill the outputs of `rows`, and overwrite both logits: with a gradient, the student's with that of the total.

        Args:
            student_CV: [C, student.width] logits.
            teacher_CV: [C, shared.width] logits.
            rows: which tokens these are.
            with_gradient: whether to form the gradient.
        """
        terms, out = self.terms, self.outputs
        shared_CV = student_CV[:, : terms.shared.width]
        if self._metrics is not None:  # before the logits are overwritten
            out.kl[rows], out.rank[rows] = self._metrics.of(shared_CV, teacher_CV)
        labels = self.inputs.labels
        # Likewise: the tile works on the logits in place.
        lm_stats = [] if labels is None else [self._label_statistics(student_CV, labels.ids[rows])]
        stats_RKC = terms.shared.gather(torch.cat((self._tile.load(shared_CV, teacher_CV), *lm_stats)))
        norms, probs = self._finish_divergence(combine(stats_RKC[:, :3], self._tile.form), with_gradient)
        out.divergence[rows] = norms.value * terms.divergence.scale
        out.student_lse[rows], out.teacher_lse[rows] = norms.student_lse, norms.teacher_lse
        if labels is not None:
            self._finish_lm(stats_RKC[:, 3:6], norms, labels.keep[rows], rows)
        if probs is not None:
            self._write_gradient(student_CV, probs, norms, rows)

    def _finish_divergence(self, norms: Normalisers, with_gradient: bool) -> tuple[Normalisers, Probabilities | None]:
        """Normalisers with value and slope, [C] each, and the probabilities where a gradient is to be formed of them.

        A KL's value is known from the statistics alone; only its gradient needs probabilities.
        """
        form = self._tile.form
        if form.expectation_under is not None:
            return norms, self._tile.renormalise(norms) if with_gradient else None
        probs = self._tile.renormalise(norms)
        value_C, slope_C = self.terms.shared.sum_(torch.stack(form.sums(probs)).double())
        return norms._replace(value=value_C, slope=slope_C), probs if with_gradient else None

    def _label_statistics(self, student_CV: Tensor, label_C: Tensor) -> Tensor:
        """This shard's log-sum-exp at temperature 1, logit at the label, and whether it holds the label: [3, C].

        The log-sum-exp is left 0 where the divergence's is the same. Else the exponentials stay in the LM buffer for
        the gradient.
        """
        stats_3C = torch.zeros(3, len(student_CV), dtype=torch.float64, device=student_CV.device)
        stats_3C[1:] = self.terms.student.pick(student_CV, label_C)
        if not self.terms.one_softmax:
            max_C, sum_C = exponentials_(self._lm[: len(student_CV)].copy_(student_CV))
            self._lm_max_C = max_C.double()
            stats_3C[0] = sum_C.double().log_().add_(max_C)
        return stats_3C

    def _finish_lm(self, stats_R3C: Tensor, norms: Normalisers, keep_C: Tensor, rows: slice) -> None:
        """Write the LM loss of `rows` from the label statistics of all shards."""
        out = self.outputs
        lse_C = norms.student_lse if self.terms.one_softmax else torch.logsumexp(stats_R3C[:, 0], dim=0)
        picked_C, out.holders[rows] = stats_R3C[:, 1:].sum(0)
        out.lm_lse[rows] = lse_C
        out.lm[rows] = torch.where(keep_C, lse_C - picked_C, 0.0)

    def _write_gradient(self, student_CV: Tensor, probs: Probabilities, norms: Normalisers, rows: slice) -> None:
        """Write kd_factor * dD/ds + lm_factor * dLM/ds over the student's logits [C, V], which nothing reads any more.

        On ids that the teacher does not have, and which the divergence is not over, there is only the LM loss's.
        """
        inputs, width, divergence = self.inputs, self.terms.shared.width, self.terms.divergence
        dtype = probs.q.dtype
        kd_factor_C1 = inputs.kd_factor[rows, None] * (divergence.inv_temperature * divergence.scale)
        lm_CV = None if inputs.labels is None else self._lm_gradient(probs, inputs.labels, rows)
        # The LM gradient first: it may read the probabilities that the closed form overwrites.
        kd_CV = self._tile.form.gradient_(probs, norms.slope.to(dtype)[:, None])
        if lm_CV is None:
            torch.mul(kd_CV, kd_factor_C1.to(dtype), out=student_CV[:, :width])
            student_CV[:, width:] = 0
        else:
            torch.addcmul(lm_CV[:, :width], kd_CV, kd_factor_C1.to(dtype), out=student_CV[:, :width])
            student_CV[:, width:] = lm_CV[:, width:]

    def _lm_gradient(self, probs: Probabilities, labels: Labels, rows: slice) -> Tensor:
        """lm_factor * (softmax - onehot(label)), [C, V] in the LM buffer."""
        lm_CV = self._lm[: len(probs.q)]
        factor_C1 = torch.where(labels.keep[rows], self.inputs.lm_factor[rows], 0.0)[:, None]
        if self.terms.one_softmax:
            lm_CV.copy_(probs.q)
        else:
            lm_CV.mul_((self._lm_max_C - self.outputs.lm_lse[rows]).exp_()[:, None].to(lm_CV.dtype))
        return subtract_at_labels_(lm_CV, labels.ids[rows], self.terms.student).mul_(factor_C1.to(lm_CV.dtype))
