"""The closed forms: value and gradient of each divergence, as functions of probabilities.

P is the teacher's distribution, Q the student's, both softmaxes at temperature T over the whole vocabulary. A
divergence is a sum D = sum_v phi(q_v, p_v), so with respect to the student's logits s = T * log q + const

    dD/ds_v = (a_v - q_v * A) / T        a_v = q_v * dphi/dq_v        A = sum_v a_v

The slope A is one number per token, so the gradient needs no [C, V] tensor beside the probabilities, and no autograd
graph through the softmax. Everything is written in q, p and the log ratio r = log p - log q: made of logits and
normalisers, r stays finite where q or p underflows and their logs would be -inf. Mixtures use
L = log(w * p/q + 1 - w) = log(mixture / q), a softplus of r.

Shapes: C tokens of a tile, V vocabulary (the logical size, also on a shard).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_kd.losses.kinds import Divergence, DivergenceKind


class Probabilities(NamedTuple):
    """The inputs of a closed form, [C, V] each; `teacher` and `ratio` are None for a form that does not read them."""

    q: Tensor
    teacher: Tensor | None
    ratio: Tensor | None

    @property
    def p(self) -> Tensor:
        """The teacher's probabilities [C, V], for forms that read them."""
        assert self.teacher is not None, "a form that reads the teacher's probabilities must set needs_teacher"
        return self.teacher

    @property
    def r(self) -> Tensor:
        """The log ratio log p - log q, [C, V], for forms that read it."""
        assert self.ratio is not None, "a form that reads the log ratio must set needs_ratio"
        return self.ratio


class ClosedForm:
    """Value and gradient of one divergence. Subclasses hold no state of a call.

    `gradient_` works in place: nothing reads a tile's probabilities after it, and a copy of a tile costs as much
    memory traffic as the arithmetic.
    """

    expectation_under: Literal["teacher", "student", None] = None
    """Set by the KLs: D is then an expectation of a logit difference plus a difference of normalisers, and shards
    combine without knowing the normalisers first. That saves a collective and a pass. The expectation is formed over
    what the gradient does not read: `needs_ratio` is False under the teacher, `needs_teacher` under the student."""

    needs_teacher: bool = True
    """Whether `gradient_` reads the teacher's probabilities."""

    needs_ratio: bool = True
    """Whether `gradient_` reads the log ratio."""

    def sums(self, probs: Probabilities) -> tuple[Tensor, Tensor]:
        """This shard's part of the value D and of the slope A, each [C]; leaves `probs` as it is. Not for the KLs."""
        raise NotImplementedError

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        """T * dD/ds = a - q * A of this shard, [C, V]; overwrites `probs`, and may return one of its tensors."""
        raise NotImplementedError


class ForwardKL(ClosedForm):
    """KL(P || Q) = sum p log(p / q), Hinton et al. 2015. Gradient q - p."""

    expectation_under = "teacher"
    needs_ratio = False

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        return probs.q.sub_(probs.p)  # a = -p, and A = -1 exactly


class ReverseKL(ClosedForm):
    """KL(Q || P) = sum q log(q / p). The slope is stored as D itself (A = D + 1 and a = q (1 - r))."""

    expectation_under = "student"
    needs_teacher = False

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        return probs.q.mul_(probs.r.add_(slope_C1).neg_())


class TotalVariation(ClosedForm):
    """1/2 sum |p - q|, as in Wen et al. 2023 (f-DISTILL)."""

    needs_ratio = False

    def sums(self, probs: Probabilities) -> tuple[Tensor, Tensor]:
        difference_CV = probs.q - probs.p  # a = q * sign(q - p) / 2
        value_C = difference_CV.abs().sum(-1).mul_(0.5)
        return value_C, difference_CV.sign_().mul_(probs.q).sum(-1).mul_(0.5)

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        sign_CV = torch.sub(probs.q, probs.p, out=probs.p).sign_().mul_(0.5)
        return probs.q.mul_(sign_CV.sub_(slope_C1))


@dataclass(frozen=True)
class _Mixture(ClosedForm):
    """A form that compares with M = weight * P + (1 - weight) * Q, 0 < weight < 1."""

    weight: float

    def log_mixture_over_q(self, ratio_CV: Tensor) -> Tensor:
        """L = log(weight * p/q + 1 - weight), [C, V], a new tensor."""
        log_odds = math.log(self.weight / (1 - self.weight))
        # Beyond the threshold softplus(x) is x, wrong by exp(-threshold): below float64 resolution at 40.
        return F.softplus(ratio_CV + log_odds, threshold=40).add_(math.log(1 - self.weight))


class GeneralisedJSD(_Mixture):
    """weight * KL(P || M) + (1 - weight) * KL(Q || M), Agarwal et al. 2023 (GKD), equation 1."""

    def sums(self, probs: Probabilities) -> tuple[Tensor, Tensor]:
        log_m_CV = self.log_mixture_over_q(probs.r)  # a = -(1 - w) q L
        from_p_C = (probs.p * (probs.r - log_m_CV)).sum(-1)
        from_q_C = -log_m_CV.mul_(probs.q).sum(-1)
        slope_C = from_q_C.mul_(1 - self.weight)
        return from_p_C.mul_(self.weight).add_(slope_C), slope_C

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        log_m_CV = self.log_mixture_over_q(probs.r)
        return probs.q.mul_(log_m_CV.mul_(self.weight - 1).sub_(slope_C1))


class SkewedForwardKL(_Mixture):
    """KL(P || M), M = alpha * P + (1 - alpha) * Q: Ko et al. 2024 (DistiLLM), equation 3."""

    def sums(self, probs: Probabilities) -> tuple[Tensor, Tensor]:
        log_m_CV = self.log_mixture_over_q(probs.r)
        value_C = (probs.p * (probs.r - log_m_CV)).sum(-1)
        slope_C = log_m_CV.neg_().exp_().mul_(probs.p).sum(-1).mul_(self.weight - 1)
        return value_C, slope_C

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        # a = -(1 - w) p q / m, with q / m = exp(-L)
        a_CV = self.log_mixture_over_q(probs.r).neg_().exp_().mul_(probs.p).mul_(self.weight - 1)
        return a_CV.sub_(probs.q.mul_(slope_C1))


class SkewedReverseKL(_Mixture):
    """KL(Q || M), M = (1 - alpha) * P + alpha * Q: Ko et al. 2024 (DistiLLM); here weight = 1 - alpha."""

    def _slope_over_q(self, log_m_CV: Tensor) -> Tensor:
        # a / q = 1 - L - alpha q / m
        return torch.exp(-log_m_CV).mul_(self.weight - 1).sub_(log_m_CV).add_(1)

    def sums(self, probs: Probabilities) -> tuple[Tensor, Tensor]:
        log_m_CV = self.log_mixture_over_q(probs.r)
        slope_C = self._slope_over_q(log_m_CV).mul_(probs.q).sum(-1)
        return -log_m_CV.mul_(probs.q).sum(-1), slope_C

    def gradient_(self, probs: Probabilities, slope_C1: Tensor) -> Tensor:
        log_m_CV = self.log_mixture_over_q(probs.r)
        return probs.q.mul_(self._slope_over_q(log_m_CV).sub_(slope_C1))


def _jsd(beta: float) -> ClosedForm:
    if beta == 0:
        return ForwardKL()
    return ReverseKL() if beta == 1 else GeneralisedJSD(beta)


_FORMS: dict[DivergenceKind, Callable[[Divergence], ClosedForm]] = {
    "forward_kl": lambda d: ForwardKL(),
    "reverse_kl": lambda d: ReverseKL(),
    "jsd": lambda d: _jsd(d.beta),
    "skewed_forward_kl": lambda d: SkewedForwardKL(d.alpha) if d.alpha else ForwardKL(),
    "skewed_reverse_kl": lambda d: SkewedReverseKL(1 - d.alpha) if d.alpha else ReverseKL(),
    "total_variation": lambda d: TotalVariation(),
}


def closed_form(divergence: Divergence) -> ClosedForm:
    """The closed form of a divergence; at the ends of a parameter's range that of the KL it becomes."""
    return _FORMS[divergence.kind](divergence)
