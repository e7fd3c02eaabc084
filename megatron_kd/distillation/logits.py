"""The logit loss, in two forms: fused, where the logits of neither model exist, and materialised.

Shapes: S sequence, B micro-batch, H student hidden, G teacher hidden, V vocabulary (the logical size, also on a shard).
Under sequence parallelism, hidden states cover this rank's part of the sequence; losses cover the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.stages import FINAL_NORM
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.report import Observed
from megatron_kd.losses.faults import Faults
from megatron_kd.losses.fused_inputs import Heads, ModelHead, Weighting
from megatron_kd.losses.fused_linear import fused_evaluation, fused_loss
from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.materialised import materialised_divergence
from megatron_kd.losses.shard import Sharding, compute_dtype
from megatron_kd.losses.top_choice import vocab_parallel_choice_rank
from megatron_kd.losses.topk import topk_loss
from megatron_kd.models.gpt import DistillableGPTModel, Headed
from megatron_kd.runtime.layout import Layout


class LogitsResult(NamedTuple):
    """For one micro-batch: the weighted total to differentiate, and detached sums over unmasked tokens.

    `observed` holds those of `OBSERVED`.
    """

    total: Tensor
    logits: Tensor
    lm: Tensor
    observed: Tensor


class LogitsLoss(Protocol):
    """Logit divergence and, where wanted, cross entropy."""

    def __call__(self, forward: Forward, student: DistillableGPTModel, hidden_SBH: Tensor) -> LogitsResult:
        """Of the student's final hidden states and the teacher's, which are among the targets."""


class FusedLogits:
    """Both models' final hidden states go straight into the fused loss.

    Args:
        teacher: whose head is here.
        kd_config: which divergence, and whether labels count.
        layout: the student's.
        sequence_parallel: whether hidden states cover only this rank's part of the sequence.
    """

    def __init__(
        self, teacher: Headed, kd_config: ModelOptDistillConfig, layout: Layout, *, sequence_parallel: bool
    ) -> None:
        self._teacher, self._divergence = teacher, kd_config.divergence
        self._skip_lm_loss = kd_config.skip_lm_loss
        self._on_ranks: dict[str, Any] = {"group": layout.tp.group, "sequence_parallel": sequence_parallel}
        # Where the head's gradient is formed: those not in use. A schedule that runs a micro-batch's backward before
        # the next forward needs one.
        self._spare_gradients: list[Tensor] = []

    def __call__(self, forward: Forward, student: DistillableGPTModel, hidden_SBH: Tensor) -> LogitsResult:
        """See `LogitsLoss`."""
        hidden_SBG = forward.targets.hidden[FINAL_NORM]
        heads = Heads(
            student=ModelHead(hidden_SBH, student.head_weight(), vocab_size=student.true_vocab_size),
            teacher=ModelHead(hidden_SBG, self._teacher.head_weight(), vocab_size=self._teacher.true_vocab_size),
        )
        return (self._train if torch.is_grad_enabled() else self._evaluate)(forward, heads)

    def _train(self, forward: Forward, heads: Heads) -> LogitsResult:
        labels_BS, mask_SB = forward.micro_batch.labels, forward.micro_batch.loss_mask.transpose(0, 1)
        weighting = Weighting(
            token_weights=mask_SB,
            labels=None if self._skip_lm_loss else labels_BS.transpose(0, 1),
            kd_scale=forward.weights.logits,
            lm_scale=forward.weights.lm,
        )
        buffer = self._gradient_buffer(heads.student.weight)
        loss = fused_loss(
            heads, self._divergence, weighting, weight_grad_buffer=buffer, faults=forward.faults, **self._on_ranks
        )
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

    def _evaluate(self, forward: Forward, heads: Heads) -> LogitsResult:
        labels_BS, mask_SB = forward.micro_batch.labels, forward.micro_batch.loss_mask.transpose(0, 1)
        values = fused_evaluation(
            heads, self._divergence, labels=labels_BS.transpose(0, 1), faults=forward.faults, **self._on_ranks
        )
        assert values.lm is not None, "labels were given"
        logits, lm = (values.divergence * mask_SB).sum(), (values.lm * mask_SB).sum()
        seen = Observed(values.kl, values.rank).sums(mask_SB)
        return LogitsResult(forward.weights.logits * logits + forward.weights.lm * lm, logits, lm, seen)


class MaterialisedLogits:
    """Both models' logits exist, whole."""

    def __init__(self, teacher: Headed, compared: ComparedLogits, *, skip_lm_loss: bool) -> None:
        self._teacher, self._compared, self._skip_lm_loss = teacher, compared, skip_lm_loss

    def __call__(self, forward: Forward, student: DistillableGPTModel, hidden_SBH: Tensor) -> LogitsResult:
        """See `LogitsLoss`."""
        mask_BS = forward.micro_batch.loss_mask
        mask_SB = mask_BS.transpose(0, 1)
        student_SBV = student.logits(hidden_SBH)
        lm = lm_loss(student, forward, student_SBV, skipped=self._skip_lm_loss)
        with torch.no_grad():
            teacher_SBV = self._teacher.logits(forward.targets.hidden[FINAL_NORM])
        losses_SB, observed = self._compared(student_SBV, teacher_SBV, forward.faults)
        logits = (losses_SB * mask_SB).sum()
        total = forward.weights.logits * logits + forward.weights.lm * lm
        return LogitsResult(total, logits.detach(), lm.detach(), observed.sums(mask_SB))


def lm_loss(student: DistillableGPTModel, forward: Forward, logits_SBV: Tensor, *, skipped: bool) -> Tensor:
    """Cross entropy with the labels, summed over unmasked tokens, []; zero where it is skipped in training."""
    micro_batch = forward.micro_batch
    if skipped and student.training:
        return micro_batch.loss_mask.new_zeros(())
    losses_BS = student.label_losses(micro_batch.labels, logits_SBV, forward.faults)
    return (losses_BS * micro_batch.loss_mask).sum()


class ComparedLogits:
    """The divergence of two models' logits, and what is reported beside it.

    Args:
        kd_config: which divergence.
        vocab_size: the ids that both models have, from 0 on; None for all.
        group: over which the vocabulary is sharded.
    """

    def __init__(self, kd_config: ModelOptDistillConfig, vocab_size: int | None, group: ProcessGroup) -> None:
        self._divergence, self._truncation = kd_config.divergence, kd_config.truncation
        self._sharding: Sharding = {"group": group, "vocab_size": vocab_size}

    def __call__(self, student_SBV: Tensor, teacher_SBV: Tensor, faults: Faults) -> tuple[Tensor, Observed]:
        """One loss per token, [S, B], and what was seen of the logits."""
        losses_SB, mass_SB = self._losses(student_SBV, teacher_SBV, faults)
        if torch.is_grad_enabled():
            return losses_SB, Observed(teacher_mass=mass_SB)
        kl_SB = materialised_divergence(student_SBV, teacher_SBV, Divergence(), faults=faults, **self._sharding)
        rank_SB = vocab_parallel_choice_rank(student_SBV, teacher_SBV, **self._sharding)
        return losses_SB, Observed(kl_SB, rank_SB, mass_SB)

    def _losses(self, student_SBV: Tensor, teacher_SBV: Tensor, faults: Faults) -> tuple[Tensor, Tensor | None]:
        divergence, sharding = self._divergence, self._sharding
        if self._truncation is None:
            losses_SB = materialised_divergence(student_SBV, teacher_SBV, divergence, faults=faults, **sharding)
            return losses_SB, None
        return topk_loss(student_SBV, teacher_SBV, self._truncation, divergence, faults=faults, **sharding)
