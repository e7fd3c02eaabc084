"""From a micro-batch's outputs to the number that is differentiated, and to the numbers that are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import modelopt.torch.distill as mtd
import torch
from torch import Tensor

from megatron_kd.distillation.balance import Balancer, Losses
from megatron_kd.distillation.criteria import LogitsDivergence
from megatron_kd.runtime.layout import Layout

# The sums over unmasked tokens that a micro-batch reports, in this order.
REPORTED = (
    "tokens",
    "loss",
    "lm_loss",
    "logits_loss",
    "intermediate_loss",
    "lm_loss_weighted",
    "logits_loss_weighted",
    "intermediate_loss_weighted",
    "teacher_top1_agreement",
)

LossResult = tuple[Tensor, Tensor, Tensor]  # total [], num_tokens [] int, reported sums [len(REPORTED)] float64


class Objective(Protocol):
    """What the loop needs of a training objective."""

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """Called on the last stage with what the model's forward returned for one micro-batch."""

    def observe(self, means: dict[str, float]) -> None:
        """Called on every rank after each step with the means over the global batch."""


class LanguageModelling:
    """Plain next-token cross entropy. The model's output is its loss per token, [B, S]."""

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`."""
        total = (output.float() * loss_mask_BS).sum()
        zero = torch.zeros((), device=total.device)
        return loss_result(total, loss_mask_BS, Losses(total, zero, zero), Losses(1.0, 0.0, 0.0), zero)

    def observe(self, means: dict[str, float]) -> None:
        """Nothing to learn from a step."""


class MaterialisedDistillation:
    """Logit divergence of both models' logits, intermediate losses and, where wanted, cross entropy.

    The model's output is its LM loss per token, [B, S]; all else was captured by ModelOpt.
    """

    def __init__(self, model: mtd.DistillationModel, balancer: Balancer, layout: Layout) -> None:
        self.balancer = balancer
        self._captured = CapturedLosses(model, layout)
        criteria = model._layers_to_loss.values()
        self._logits = next((c for c in criteria if isinstance(c, LogitsDivergence)), None)

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`."""
        logits, *pairs = self._captured.sums(loss_mask_BS)
        losses = Losses((output.float() * loss_mask_BS).sum(), logits, mean_of_pairs(pairs, logits))
        reported = losses._replace(intermediate=self._captured.over_sequence(losses.intermediate))
        weights = self.balancer.weights(reported)
        total = sum(losses.weighted(weights))
        return loss_result(total, loss_mask_BS, reported, weights, self._agreement(loss_mask_BS))

    def observe(self, means: dict[str, float]) -> None:
        """Let the balancer see the step's mean losses."""
        self.balancer.observe(Losses(means["lm_loss"], means["logits_loss"], means["intermediate_loss"]))

    def _agreement(self, loss_mask_BS: Tensor) -> Tensor:
        if self._logits is None or self._logits.agreement is None:
            return torch.zeros((), device=loss_mask_BS.device)
        agreement_SB, self._logits.agreement = self._logits.agreement, None
        return (agreement_SB * loss_mask_BS.transpose(0, 1)).sum()


class CapturedLosses:
    """The losses of the layers that ModelOpt captured in the last forward, summed over unmasked tokens."""

    def __init__(self, model: mtd.DistillationModel, layout: Layout) -> None:
        self._model, self._layout = model, layout
        self.sequence_parallel = model.config.sequence_parallel

    def sums(self, loss_mask_BS: Tensor) -> list[Tensor]:
        """One scalar a criterion. Under sequence parallelism, those of hidden states are this rank's part."""
        mask_SB = loss_mask_BS.transpose(0, 1)
        per_token = self._model.compute_kd_loss(student_loss=None, skip_balancer=True)
        return [self._masked_sum(losses_SB, mask_SB) for losses_SB in per_token.values()]

    def over_sequence(self, partial: Tensor) -> Tensor:
        """A detached sum of hidden-state losses over the whole sequence."""
        partial = partial.detach()
        if self.sequence_parallel:
            partial = partial.clone()
            torch.distributed.all_reduce(partial, group=self._layout.tp.group)
        return partial

    def _masked_sum(self, losses_SB: Tensor, mask_SB: Tensor) -> Tensor:
        if losses_SB.shape[0] != mask_SB.shape[0]:  # this rank's part of the sequence
            mask_SB = mask_SB.chunk(self._layout.tp.size)[self._layout.tp.rank]
        return (losses_SB.float() * mask_SB).sum()


def mean_of_pairs(pairs: list[Tensor], like: Tensor) -> Tensor:
    """The intermediate loss: the mean over layer pairs; 0 where there are none."""
    return torch.stack(pairs).mean() if pairs else torch.zeros((), device=like.device)


def loss_result(total: Tensor, loss_mask_BS: Tensor, losses: Losses, weights: Losses, agreement: Tensor) -> LossResult:
    """Put together what an objective returns: the total to differentiate, token count, and sums to report."""
    num_tokens = loss_mask_BS.sum()
    weighted = losses.weighted(weights)
    values = [num_tokens, sum(weighted), *losses, *weighted, agreement]
    reported = torch.stack([torch.as_tensor(v, device=total.device).detach().double() for v in values])
    return total, num_tokens.int(), reported


LossFunction = Callable[[Tensor], LossResult]
