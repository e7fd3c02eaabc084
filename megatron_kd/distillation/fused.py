"""Distillation without logits: both models' final hidden states go straight into the fused loss.

The teacher's last stage leaves its hidden states here; the student's turns both into the total to differentiate.
Only hidden-state pairs, where configured, are still captured by ModelOpt.
"""

from __future__ import annotations

import modelopt.torch.distill as mtd
import torch
from torch import Tensor

from megatron_kd.distillation.balance import Balancer, Losses
from megatron_kd.distillation.criteria import logits_options
from megatron_kd.distillation.objective import CapturedLosses, LossResult, loss_result, mean_of_pairs
from megatron_kd.losses.fused_linear import fused_linear_divergence, fused_linear_evaluation
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout


class FusedDistillation:
    """The objective, and the head function of both models' last stages. Its weights are those of the balancer,
    which must know them before the forward pass. The student's output is the weighted sum of its logit and LM losses.
    """

    def __init__(self, model: mtd.DistillationModel, balancer: Balancer, layout: Layout) -> None:
        if balancer.config.loss_balancer == "modelopt":
            raise ValueError(
                "the modelopt balancer weighs the losses after the forward pass: use the materialised form"
            )
        self.balancer = balancer
        self._captured = CapturedLosses(model, layout)
        self._layout = layout
        self._options = logits_options(balancer.config, model.true_vocab_size)
        self._teacher: tuple[DistillableGPTModel, Tensor] | None = None
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        model.teacher_model.head_function = self._keep_teacher
        model.head_function = self._student_total

    def __call__(self, output: Tensor, loss_mask_BS: Tensor) -> LossResult:
        """See `Objective`."""
        assert self._sums is not None, "the student's forward has not run"
        (logits, lm, agreement), self._sums = self._sums, None
        intermediate = mean_of_pairs(self._captured.sums(loss_mask_BS), output)
        losses = Losses(lm, logits, self._captured.over_sequence(intermediate))
        weights = self.balancer.weights(losses)
        return loss_result(output + weights.intermediate * intermediate, loss_mask_BS, losses, weights, agreement)

    def observe(self, means: dict[str, float]) -> None:
        """Let the balancer see the step's mean losses."""
        self.balancer.observe(Losses(means["lm_loss"], means["logits_loss"], means["intermediate_loss"]))

    def _keep_teacher(
        self, model: DistillableGPTModel, hidden_SBG: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None
    ) -> Tensor:
        self._teacher = (model, hidden_SBG)
        return hidden_SBG

    def _student_total(
        self, model: DistillableGPTModel, hidden_SBH: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None
    ) -> Tensor:
        assert self._teacher is not None and labels_BS is not None and loss_mask_BS is not None
        (teacher, hidden_SBG), self._teacher = self._teacher, None
        inputs = (hidden_SBH, model.head_weight(), hidden_SBG, teacher.head_weight())
        if model.training:
            return self._train(inputs, labels_BS.transpose(0, 1), loss_mask_BS.transpose(0, 1))
        return self._evaluate(inputs, labels_BS.transpose(0, 1), loss_mask_BS.transpose(0, 1))

    def _train(self, inputs: tuple[Tensor, ...], labels_SB: Tensor, mask_SB: Tensor) -> Tensor:
        skip_lm = self.balancer.config.skip_lm_loss
        weights = self.balancer.weights(Losses(0.0, 0.0, 0.0))
        result = fused_linear_divergence(
            *inputs,
            token_weights=mask_SB,
            labels=None if skip_lm else labels_SB,
            kd_scale=weights.logits,
            lm_scale=weights.lm,
            group=self._layout.tp.group,
            sequence_parallel=self._captured.sequence_parallel,
            **self._options,
        )
        zero = torch.zeros((), device=mask_SB.device)
        with torch.no_grad():
            lm = zero if result.lm is None else (result.lm * mask_SB).sum()
            self._sums = ((result.divergence * mask_SB).sum(), lm, zero)
        return result.total

    def _evaluate(self, inputs: tuple[Tensor, ...], labels_SB: Tensor, mask_SB: Tensor) -> Tensor:
        result = fused_linear_evaluation(
            *inputs,
            labels=labels_SB,
            group=self._layout.tp.group,
            sequence_parallel=self._captured.sequence_parallel,
            **self._options,
        )
        divergence, lm, agreement = ((x * mask_SB).sum() for x in result)
        self._sums = (divergence, lm, agreement)
        weights = self.balancer.weights(Losses(0.0, 0.0, 0.0))
        return weights.logits * divergence + weights.lm * lm
