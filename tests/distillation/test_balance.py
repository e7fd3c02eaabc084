"""The weights of the losses: ModelOpt's formula, when each balancer applies it, and what it remembers."""

from __future__ import annotations

import pytest
import torch
from modelopt.torch.distill.plugins.megatron import LogitsAndIntermediatesLossBalancer

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.distillation.balance import Balancer, Losses, balanced

MEANS = Losses(3.5, 1.25, 0.2)
REPORT = {"lm_loss": 3.5, "logits_loss": 1.25, "intermediate_loss": 0.2, "tokens": 9.0}


@pytest.mark.parametrize("skip_lm_loss", [True, False])
@pytest.mark.parametrize("losses", [MEANS, Losses(3.5, 1.25, 0.0), Losses(0.0, 1.25, 0.2), Losses(3.5, 0.0, 0.0)])
def test_balanced_weights_give_the_total_and_gradient_of_modelopts_balancer(losses: Losses, skip_lm_loss: bool) -> None:
    kd = ModelOptDistillConfig(skip_lm_loss=skip_lm_loss, kd_loss_scale=0.7)
    ours = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in losses]
    weights = balanced(Losses(*(v.detach() for v in ours)), kd)
    total = sum(Losses(*ours).weighted(weights))
    theirs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in losses]
    balancer = LogitsAndIntermediatesLossBalancer(kd_loss_scale=0.7, skip_original_loss=skip_lm_loss)
    expected = balancer({"student_loss": theirs[0], "LogitsKLLoss_0": theirs[1], "Cosine_1": theirs[2]})["kd_loss"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    total.backward()
    expected.backward()
    for value, a, b in zip(losses, ours, theirs, strict=True):
        if value > 0:  # ModelOpt drops the gradient of an intermediate loss of exactly zero
            assert (a.grad or 0.0) == pytest.approx((b.grad if b.grad is not None else torch.tensor(0.0)).item())


def test_floats_and_tensors_give_the_same_weights() -> None:
    kd = ModelOptDistillConfig(skip_lm_loss=False)
    tensors = balanced(Losses(*(torch.tensor(v, dtype=torch.float64) for v in MEANS)), kd)
    assert [float(t) for t in tensors] == pytest.approx(list(balanced(MEANS, kd)))


def test_global_starts_at_one_and_then_uses_the_previous_step_only() -> None:
    balancer = Balancer(ModelOptDistillConfig(skip_lm_loss=False, kd_loss_scale=1.0))
    assert balancer.weights() == Losses(1.0, 1.0, 1.0)
    balancer.observe(REPORT)
    weights = balancer.weights()
    assert weights == balanced(MEANS, balancer.config)
    assert weights.logits * MEANS.logits == pytest.approx(MEANS.lm / 2)
    assert weights.intermediate * MEANS.intermediate == pytest.approx(MEANS.lm / 2)


def test_static_weights_are_the_configs() -> None:
    kd = ModelOptDistillConfig(
        loss_balancer="static", logits_loss_weight=2.0, intermediate_loss_weight=3.0, kd_loss_scale=0.5
    )
    assert Balancer(kd).weights() == Losses(0.0, 2.0, 3.0)
    kd.skip_lm_loss = False
    assert Balancer(kd).weights() == Losses(1.0, 1.0, 1.5)


def test_a_restored_balancer_gives_the_same_weights() -> None:
    kd = ModelOptDistillConfig()
    first, second = Balancer(kd), Balancer(kd)
    first.observe(REPORT)
    second.load_state_dict(first.state_dict())
    assert second.weights() == first.weights() != Balancer(kd).weights()
    second.load_state_dict(Balancer(kd).state_dict())
    assert second.previous is None
