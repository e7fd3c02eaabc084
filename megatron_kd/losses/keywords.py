"""The losses as functions of tensors and keywords alone, for use outside a run.

Each builds the values that the package itself passes around, and calls the function that takes those values, where
shapes, results and errors are documented. Defaults are those of the values. A keyword is a field of

- `Divergence`: `kind`, `temperature`, `temperature_squared`, `beta`, `alpha`;
- `Truncation`, of the top-k loss: `tail`;
- `Weighting`, of the fused loss: `token_weights`, `labels`, `kd_scale`, `lm_scale`, `ignore_index`;
- `Sharding`, of losses of logits: `group`, `vocab_size`, `chunk_tokens`;

or a keyword argument of the function that is called.

Shapes: V vocabulary (the logical size, also on a shard), H student hidden size, G teacher hidden size.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor

from megatron_kd.losses.fused_inputs import Heads, ModelHead, Weighting
from megatron_kd.losses.fused_linear import FusedEvaluation, FusedLoss, fused_evaluation, fused_loss
from megatron_kd.losses.kinds import Divergence, Truncation
from megatron_kd.losses.materialised import materialised_divergence
from megatron_kd.losses.topk import TopKLoss, topk_loss

Value = TypeVar("Value")


def vocab_parallel_divergence(student_logits: Tensor, teacher_logits: Tensor, **keywords: Any) -> Tensor:
    """`materialised_divergence` of logits [..., V/tp]: [...], differentiable with respect to the student's.

    Args:
        student_logits, teacher_logits: this rank's shards.
        keywords: fields of `Divergence` and of `Sharding`; `faults`.
    """
    divergence = _taken(Divergence, keywords)
    return materialised_divergence(student_logits, teacher_logits, divergence, **keywords)


def vocab_parallel_topk_divergence(student_logits: Tensor, teacher_logits: Tensor, k: int, **keywords: Any) -> TopKLoss:
    """`topk_loss` of logits [..., V/tp]: the forward KL on the teacher's top k tokens, and their mass, [...].

    Args:
        student_logits, teacher_logits: this rank's shards.
        k: number of tokens.
        keywords: `tail`, `temperature`, `temperature_squared`; fields of `Sharding`; `faults`.
    """
    keywords = {"k": k, **keywords}
    truncation, divergence = _taken(Truncation, keywords), _taken(Divergence, keywords)
    return topk_loss(student_logits, teacher_logits, truncation, divergence, **keywords)


def fused_linear_divergence(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, **keywords: Any
) -> FusedLoss:
    """`fused_loss` of hidden states and heads: the total, and both losses per token, [...].

    Args:
        student_hidden, student_weight: [..., H] and [V/tp, H].
        teacher_hidden, teacher_weight: [..., G] and [V/tp, G].
        keywords: fields of `Divergence` and `Weighting`; `student_bias`, `teacher_bias`, [V/tp]; `vocab_size`, the
            student's true one, and `teacher_vocab_size`; `group`, `sequence_parallel`, `chunk_tokens`,
            `weight_grad_buffer`, `faults`.
    """
    heads = _heads(student_hidden, student_weight, teacher_hidden, teacher_weight, keywords)
    divergence, weighting = _taken(Divergence, keywords), _taken(Weighting, keywords)
    return fused_loss(heads, divergence, weighting, **keywords)


def fused_linear_evaluation(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, **keywords: Any
) -> FusedEvaluation:
    """`fused_evaluation` of hidden states and heads: both losses per token, KL and rank, [...].

    Args:
        student_hidden, student_weight, teacher_hidden, teacher_weight: as in `fused_linear_divergence`.
        keywords: the same, except those of the total and of gradients.
    """
    heads = _heads(student_hidden, student_weight, teacher_hidden, teacher_weight, keywords)
    return fused_evaluation(heads, _taken(Divergence, keywords), **keywords)


def _heads(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    keywords: dict[str, Any],
) -> Heads:
    """Both models' heads, with the biases and vocabulary sizes among `keywords`, which are taken out."""
    student = keywords.pop("student_bias", None), keywords.pop("vocab_size", None)
    teacher = keywords.pop("teacher_bias", None), keywords.pop("teacher_vocab_size", None)
    return Heads(
        ModelHead(student_hidden, student_weight, *student), ModelHead(teacher_hidden, teacher_weight, *teacher)
    )


def _taken(value_class: type[Value], keywords: dict[str, Any]) -> Value:
    """The value of the fields of `value_class` among `keywords`, which are taken out."""
    names = [field.name for field in fields(value_class) if field.name in keywords]  # type: ignore[arg-type]
    return value_class(**{name: keywords.pop(name) for name in names})
