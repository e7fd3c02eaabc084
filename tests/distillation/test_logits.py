"""The buffer in which the fused form makes the head's gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.logits import FusedLogits

V, H, S, B = 24, 8, 6, 2


def model(weight: torch.Tensor) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(sequence_parallel=False),
        true_vocab_size=V,
        faults=None,
        teacher_model=SimpleNamespace(true_vocab_size=V, head_weight=lambda: torch.ones(V, H)),
        head_weight=lambda: weight,
        head_function=None,
    )


def head_gradient(order: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, int]:
    """The sum of the micro-batches' head gradients under a schedule, and how many buffers it took."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(V, H))
    weight.main_grad = torch.zeros(V, H)  # type: ignore[attr-defined]
    student = model(weight)
    fused = FusedLogits(student, Balancer(ModelOptDistillConfig()), SimpleNamespace(tp=SimpleNamespace(group=None)))
    labels, mask = torch.zeros(B, S, dtype=torch.long), torch.ones(B, S)
    totals = []
    for student_hidden, teacher_hidden in batches:
        student.teacher_model.head_function(student.teacher_model, teacher_hidden, None, None)
        total = student.head_function(student, student_hidden, labels, mask)
        if order == "one by one":
            total.backward()
        totals.append(total)
    if order == "forwards first":
        for total in totals:
            total.backward()
    return weight.main_grad, len(fused._spare_gradients)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("order", "buffers"), [("one by one", 1), ("forwards first", 3)])
def test_micro_batches_share_a_buffer_only_one_after_the_other(order: str, buffers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(S, B, H, generator=generator), torch.randn(S, B, H, generator=generator)) for _ in range(3)]
    alone = [head_gradient("one by one", [batch])[0] for batch in batches]
    together, used = head_gradient(order, batches)
    torch.testing.assert_close(together, sum(alone))
    assert used == buffers
