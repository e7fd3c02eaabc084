"""The maths of distillation: functions of tensors and a process group, which know no model and no configuration.

Its public names are imported on first use: `kinds` and `sizes` are for callers without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "HIDDEN_LOSSES": "hidden",
    "KINDS": "kinds",
    "TAILS": "kinds",
    "Divergence": "kinds",
    "FusedEvaluation": "fused_linear",
    "FusedLoss": "fused_linear",
    "Heads": "fused_inputs",
    "ModelHead": "fused_inputs",
    "TopK": "topk",
    "Truncation": "kinds",
    "Weighting": "fused_inputs",
    "cosine_loss": "hidden",
    "fused_evaluation": "fused_linear",
    "fused_linear_divergence": "keywords",
    "fused_linear_evaluation": "keywords",
    "fused_loss": "fused_linear",
    "log_probs_at": "log_probs",
    "materialised_divergence": "materialised",
    "mse_loss": "hidden",
    "smooth_l1_loss": "hidden",
    "topk_divergence": "topk",
    "topk_loss": "topk",
    "vocab_parallel_argmax": "top_choice",
    "vocab_parallel_choice_rank": "top_choice",
    "vocab_parallel_cross_entropy": "cross_entropy",
    "vocab_parallel_divergence": "keywords",
    "vocab_parallel_topk": "topk",
    "vocab_parallel_topk_agreement": "top_choice",
    "vocab_parallel_topk_divergence": "keywords",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"megatron_kd.losses.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
