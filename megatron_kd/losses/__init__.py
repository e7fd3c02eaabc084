"""The maths of distillation: functions of tensors and a process group, which know no model and no configuration."""

from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.divergence import vocab_parallel_divergence
from megatron_kd.losses.fused_linear import (
    FusedEvaluation,
    FusedLoss,
    fused_linear_divergence,
    fused_linear_evaluation,
)
from megatron_kd.losses.hidden import HIDDEN_LOSSES, cosine_loss, mse_loss, smooth_l1_loss
from megatron_kd.losses.kinds import KINDS
from megatron_kd.losses.log_probs import log_probs_at
from megatron_kd.losses.top_choice import (
    vocab_parallel_argmax,
    vocab_parallel_choice_rank,
    vocab_parallel_topk_agreement,
)
from megatron_kd.losses.topk import TAILS, TopK, topk_divergence, vocab_parallel_topk, vocab_parallel_topk_divergence

__all__ = [
    "HIDDEN_LOSSES",
    "KINDS",
    "TAILS",
    "FusedEvaluation",
    "FusedLoss",
    "TopK",
    "cosine_loss",
    "fused_linear_divergence",
    "fused_linear_evaluation",
    "log_probs_at",
    "mse_loss",
    "smooth_l1_loss",
    "topk_divergence",
    "vocab_parallel_argmax",
    "vocab_parallel_choice_rank",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_divergence",
    "vocab_parallel_topk",
    "vocab_parallel_topk_agreement",
    "vocab_parallel_topk_divergence",
]
