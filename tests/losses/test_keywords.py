"""The keyword functions pass every keyword on to the values that they make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_kd import losses
from megatron_kd.losses import Divergence, Heads, ModelHead, Truncation, Weighting
from megatron_kd.losses.faults import Faults, count_faults

N, H, G, V, SHARED = 6, 5, 7, 12, 9
DIVERGENCE: dict[str, Any] = {"kind": "jsd", "temperature": 2.0, "temperature_squared": True, "beta": 0.3}
WEIGHTING: dict[str, Any] = {"kd_scale": 0.7, "lm_scale": 0.3, "ignore_index": 3}


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def same(got: Any, wanted: Any) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("alone", [{}, DIVERGENCE, {"kind": "skewed_reverse_kl", "alpha": 0.4}])
def test_divergence_of_logits(alone: dict[str, Any]) -> None:
    logits = tensors((N, V), (N, V))
    got = losses.vocab_parallel_divergence(*logits, vocab_size=SHARED, **alone)
    same([got], [losses.materialised_divergence(*logits, Divergence(**alone), vocab_size=SHARED)])


def test_top_k() -> None:
    logits, tempered = tensors((N, V), (N, V)), {"temperature": 2.0, "temperature_squared": True}
    got = losses.vocab_parallel_topk_divergence(*logits, 3, tail="ignore", vocab_size=SHARED, **tempered)
    same(got, losses.topk_loss(*logits, Truncation(3, "ignore"), Divergence(**tempered), vocab_size=SHARED))


def test_fused() -> None:
    hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias = tensors(
        (N, H), (V, H), (V,), (N, G), (V, G), (V,)
    )
    tokens = {"token_weights": torch.arange(N), "labels": torch.arange(N)}
    heads = Heads(ModelHead(hidden, weight, bias, 11), ModelHead(teacher_hidden, teacher_weight, teacher_bias, SHARED))
    matrices = hidden, weight, teacher_hidden, teacher_weight
    sides: dict[str, Any] = {
        "student_bias": bias, "teacher_bias": teacher_bias, "vocab_size": 11, "teacher_vocab_size": SHARED,
    }  # fmt: skip
    got = losses.fused_linear_divergence(*matrices, **sides, **DIVERGENCE, **WEIGHTING, **tokens)
    same(got, losses.fused_loss(heads, Divergence(**DIVERGENCE), Weighting(**WEIGHTING, **tokens)))
    labels: dict[str, Any] = {"labels": tokens["labels"], "ignore_index": 3}
    evaluated = losses.fused_linear_evaluation(*matrices, **sides, **DIVERGENCE, **labels)
    same(evaluated, losses.fused_evaluation(heads, Divergence(**DIVERGENCE), **labels))


def test_faults_are_passed_on_and_unknown_keywords_refused() -> None:
    logits, faults = tensors((N, V), (N, V)), Faults()
    logits[0][0, 0] = torch.nan
    losses.vocab_parallel_divergence(*logits, faults=faults)
    assert count_faults([faults], logits[0].device)[0] == 1
    with pytest.raises(TypeError, match="betta"):
        losses.vocab_parallel_divergence(*logits, kind="jsd", betta=0.3)
