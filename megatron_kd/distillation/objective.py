"""From a micro-batch's outputs to the number that is differentiated, and to the numbers that are reported."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from megatron_kd.distillation.balance import Balancer, Losses
from megatron_kd.distillation.criteria import OBSERVED, LogitsDivergence, Observed
from megatron_kd.distillation.logits import UNKNOWN, FusedLogits, MaterialisedLogits
from megatron_kd.distillation.pairs import InjectedPairs
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.modelopt import mtd
from megatron_kd.teachers.protocol import Teacher

# The sums over unmasked tokens that make up a step's report, in this order.
REPORTED = (
    "tokens",
    "loss",
    "lm_loss",
    "logits_loss",
    "intermediate_loss",
    "lm_loss_weighted",
    "logits_loss_weighted",
    "intermediate_loss_weighted",
    *OBSERVED,
)

LossResult = tuple[Tensor, Tensor, Tensor]  # total [], num_tokens [] int, reported sums [len(REPORTED)] float64


class Objective(Protocol):
    """What the loop needs of a training objective."""

    @property
    def balancer(self) -> Balancer | None:
        """What weighs the losses against each other; None where there is but one."""

    def begin(self, index: int, loss_mask_BS: Tensor) -> None:
        """Called on every stage before the forward of micro-batch `index` of a step."""

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """Called on the last stage with what the model's forward returned for the micro-batch."""

    def take_stage_sums(self) -> Tensor:
        """Called on every rank after a step's forwards: what this rank adds to the sums, [len(REPORTED)]."""

    def observe(self, means: dict[str, float]) -> None:
        """Called on every rank after each step with the means over the global batch."""


class LanguageModelling:
    """Plain next-token cross entropy. The model's output is its loss per token, [B, S]."""

    balancer = None

    def begin(self, index: int, loss_mask_BS: Tensor) -> None:
        """Nothing to prepare."""

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`."""
        total = (output.float() * loss_mask_BS).sum()
        seen = Observed().sums(loss_mask_BS)
        return _result(total, loss_mask_BS, Losses(total, 0.0, 0.0), Losses(1.0, 0.0, 0.0), seen)

    def take_stage_sums(self) -> Tensor:
        """Nothing beyond the last stage's results."""
        return torch.zeros(len(REPORTED), dtype=torch.float64)

    def observe(self, means: dict[str, float]) -> None:
        """Nothing to learn from a step."""


class Distillation:
    """Logit divergence, intermediate losses and, where wanted, cross entropy, with weights known before a step."""

    def __init__(
        self,
        logits: FusedLogits | MaterialisedLogits | None,
        teacher: Teacher,
        pairs: InjectedPairs,
        balancer: Balancer,
        layout: Layout,
    ) -> None:
        self.balancer = balancer
        self._logits, self._teacher, self._pairs, self._layout = logits, teacher, pairs, layout

    def begin(self, index: int, loss_mask_BS: Tensor) -> None:
        """Tell the teacher which micro-batch comes, and the layer pairs its mask and weight."""
        self._teacher.select(index)
        self._pairs.begin(loss_mask_BS, self.balancer.weights(UNKNOWN).intermediate)

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`. The intermediate losses are not in the total: their gradient enters at their layers."""
        assert self._logits is not None, "logits are on the last stage only"
        result = self._logits.result(output, loss_mask_BS)
        losses = Losses(result.lm, result.logits, 0.0)
        return _result(result.total, loss_mask_BS, losses, self.balancer.weights(UNKNOWN), result.observed)

    def take_stage_sums(self) -> Tensor:
        """The layer pairs of this stage; of one tensor-parallel rank, unless each has its part of the sequence."""
        sums = torch.zeros(len(REPORTED), dtype=torch.float64, device=self._layout.device)
        loss, weighted = self._pairs.take_sums()
        if self._layout.tp.rank == 0 or self._pairs.sequence_parallel:
            sums[REPORTED.index("intermediate_loss")] = loss
            sums[REPORTED.index("intermediate_loss_weighted")] = weighted
            sums[REPORTED.index("loss")] = weighted
        return sums

    def observe(self, means: dict[str, float]) -> None:
        """Let the balancer see the step's mean losses."""
        _observe(self.balancer, means)


class ModelOptDistillation:
    """ModelOpt's own step: all it captured on the last stage, weighed by the ratios of the micro-batch itself.

    The model's output is its LM loss per token, [B, S].
    """

    def __init__(
        self, model: mtd.DistillationModel | None, teacher: Teacher, balancer: Balancer, layout: Layout
    ) -> None:
        self.balancer = balancer
        self._model, self._teacher, self._layout = model, teacher, layout
        criteria = model._layers_to_loss.values() if model is not None else ()
        self._criterion = next((c for c in criteria if isinstance(c, LogitsDivergence)), None)

    def begin(self, index: int, loss_mask_BS: Tensor) -> None:
        """Tell the teacher which micro-batch comes."""
        self._teacher.select(index)

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`."""
        assert self._model is not None and self._criterion is not None, "logits are on the last stage only"
        mask_SB = loss_mask_BS.transpose(0, 1)
        per_token = self._model.compute_kd_loss(student_loss=None, skip_balancer=True)
        logits, *pairs = (self._masked_sum(losses_SB, mask_SB) for losses_SB in per_token.values())
        intermediate = torch.stack(pairs).mean() if pairs else torch.zeros_like(logits)
        losses = Losses((output.float() * loss_mask_BS).sum(), logits, intermediate)
        reported = losses._replace(intermediate=self._over_sequence(intermediate))
        weights = self.balancer.weights(reported)
        seen = self._criterion.take_observed().sums(mask_SB)
        return _result(sum(losses.weighted(weights)), loss_mask_BS, reported, weights, seen)

    def take_stage_sums(self) -> Tensor:
        """Nothing beyond the last stage's results."""
        return torch.zeros(len(REPORTED), dtype=torch.float64)

    def observe(self, means: dict[str, float]) -> None:
        """Let the balancer see the step's mean losses."""
        _observe(self.balancer, means)

    def _masked_sum(self, losses_SB: Tensor, mask_SB: Tensor) -> Tensor:
        if losses_SB.shape[0] != mask_SB.shape[0]:  # this rank's part of the sequence
            mask_SB = mask_SB.chunk(self._layout.tp.size)[self._layout.tp.rank]
        return (losses_SB.float() * mask_SB).sum()

    def _over_sequence(self, partial: Tensor) -> Tensor:
        partial = partial.detach().clone()
        assert self._model is not None
        if self._model.config.sequence_parallel:
            torch.distributed.all_reduce(partial, group=self._layout.tp.group)
        return partial


def _observe(balancer: Balancer, means: dict[str, float]) -> None:
    balancer.observe(Losses(means["lm_loss"], means["logits_loss"], means["intermediate_loss"]))


def _result(total: Tensor, loss_mask_BS: Tensor, losses: Losses, weights: Losses, seen: Tensor) -> LossResult:
    num_tokens = loss_mask_BS.sum()
    weighted = losses.weighted(weights)
    values = [num_tokens, sum(weighted), *losses, *weighted]
    reported = torch.stack([torch.as_tensor(v, device=total.device).detach().double() for v in values])
    return total, num_tokens.int(), torch.cat((reported, seen))
