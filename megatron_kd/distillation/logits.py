"""The logit loss, in two forms: fused, where the logits of neither model exist, and materialised."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_kd.distillation.balance import Balancer, Losses
from megatron_kd.distillation.criteria import LogitsDivergence, Observed
from megatron_kd.losses.fused_inputs import Heads, ModelHead, Weighting
from megatron_kd.losses.fused_linear import fused_evaluation, fused_loss
from megatron_kd.losses.shard import compute_dtype
from megatron_kd.models.gpt import Headed
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.modelopt import mtd


class LogitsResult(NamedTuple):
    """For one micro-batch: the weighted total to differentiate, and detached sums over unmasked tokens.

    `observed` holds those of `criteria.OBSERVED`.
    """

    total: Tensor
    logits: Tensor
    lm: Tensor
    observed: Tensor


class MaterialisedLogits:
    """Losses of both models' logits, which ModelOpt captured. The student's output is its LM loss, [B, S]."""

    def __init__(self, model: mtd.DistillationModel, balancer: Balancer, layout: Layout) -> None:
        self._model, self._balancer = model, balancer
        criteria = model._layers_to_loss.values()
        self._criterion = next((c for c in criteria if isinstance(c, LogitsDivergence)), None)

    def result(self, output: Tensor, loss_mask_BS: Tensor) -> LogitsResult:
        """The losses of the micro-batch whose forward gave `output`."""
        assert self._criterion is not None, "logits are on the last stage only"
        (losses_SB,) = self._model.compute_kd_loss(student_loss=None, skip_balancer=True).values()
        mask_SB = loss_mask_BS.transpose(0, 1)
        logits = (losses_SB * mask_SB).sum()
        lm = (output.float() * loss_mask_BS).sum()
        weights = self._balancer.weights(UNKNOWN)
        seen = self._criterion.take_observed().sums(mask_SB)
        return LogitsResult(weights.logits * logits + weights.lm * lm, logits.detach(), lm.detach(), seen)


# What the balancers that serve these forms are told of the micro-batch: they do not look.
UNKNOWN = Losses(0.0, 0.0, 0.0)


class FusedLogits:
    """Both models' final hidden states go straight into the fused loss, as head functions of their last stages.

    The teacher leaves its hidden states here, the student turns both into its output: the weighted total.
    """

    def __init__(self, model: mtd.DistillationModel, balancer: Balancer, layout: Layout) -> None:
        self._balancer, self._layout = balancer, layout
        self._divergence = balancer.config.divergence
        self._vocab_sizes = model.true_vocab_size, model.teacher_model.true_vocab_size
        self._on_ranks: dict[str, Any] = {
            "group": layout.tp.group,
            "sequence_parallel": model.config.sequence_parallel,
            "faults": model.faults,
        }
        self._teacher: tuple[Headed, Tensor] | None = None
        # Where the head's gradient is formed: those not in use. A schedule that runs a micro-batch's backward before
        # the next forward needs one.
        self._spare_gradients: list[Tensor] = []
        self._result: LogitsResult | None = None
        model.teacher_model.head_function = self._keep_teacher
        model.head_function = self._student_total

    def result(self, output: Tensor, loss_mask_BS: Tensor) -> LogitsResult:
        """The losses of the micro-batch whose forward gave `output`."""
        assert self._result is not None, "the student's forward has not run"
        result, self._result = self._result, None
        return result._replace(total=output)  # what came through the wrappers, for the backward to start from

    def _keep_teacher(
        self, model: Headed, hidden_SBG: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None
    ) -> Tensor:
        self._teacher = (model, hidden_SBG)
        return hidden_SBG

    def _student_total(
        self, model: Headed, hidden_SBH: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None
    ) -> Tensor:
        assert self._teacher is not None and labels_BS is not None and loss_mask_BS is not None
        (teacher, hidden_SBG), self._teacher = self._teacher, None
        vocab_size, teacher_vocab_size = self._vocab_sizes
        heads = Heads(
            student=ModelHead(hidden_SBH, model.head_weight(), vocab_size=vocab_size),
            teacher=ModelHead(hidden_SBG, teacher.head_weight(), vocab_size=teacher_vocab_size),
        )
        compute = self._train if torch.is_grad_enabled() else self._evaluate
        self._result = compute(heads, labels_BS.transpose(0, 1), loss_mask_BS.transpose(0, 1))
        return self._result.total

    def _train(self, heads: Heads, labels_SB: Tensor, mask_SB: Tensor) -> LogitsResult:
        weights = self._balancer.weights(UNKNOWN)
        weighting = Weighting(
            token_weights=mask_SB,
            labels=None if self._balancer.config.skip_lm_loss else labels_SB,
            kd_scale=weights.logits,
            lm_scale=weights.lm,
        )
        buffer = self._gradient_buffer(heads.student.weight)
        loss = fused_loss(heads, self._divergence, weighting, weight_grad_buffer=buffer, **self._on_ranks)
        if buffer is not None and loss.total.grad_fn is not None:
            loss.total.grad_fn.register_hook(lambda *_: self._spare_gradients.append(buffer))
        with torch.no_grad():
            lm = mask_SB.new_zeros(()) if loss.lm is None else (loss.lm * mask_SB).sum()
            return LogitsResult(loss.total, (loss.divergence * mask_SB).sum(), lm, Observed().sums(mask_SB))

    def _gradient_buffer(self, weight: Tensor) -> Tensor | None:
        """Where the backward adds to a `main_grad`, and so is done with the buffer; elsewhere it is the gradient."""
        if not hasattr(weight, "main_grad"):
            return None
        if self._spare_gradients:
            return self._spare_gradients.pop()
        return torch.empty_like(weight, dtype=compute_dtype(weight))

    def _evaluate(self, heads: Heads, labels_SB: Tensor, mask_SB: Tensor) -> LogitsResult:
        values = fused_evaluation(heads, self._divergence, labels=labels_SB, **self._on_ranks)
        assert values.lm is not None, "labels were given"
        logits, lm = (values.divergence * mask_SB).sum(), (values.lm * mask_SB).sum()
        weights, seen = self._balancer.weights(UNKNOWN), Observed(values.kl, values.rank).sums(mask_SB)
        return LogitsResult(weights.logits * logits + weights.lm * lm, logits, lm, seen)
