from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_kd.errors import InputError
from megatron_kd.losses.hidden import HIDDEN_LOSSES, cosine_loss, smooth_l1_loss
from megatron_kd.losses.kinds import HIDDEN_KINDS

S, B, H = 5, 2, 16


def states(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.randn(S, B, H, generator=generator) * 2).to(dtype).requires_grad_() for _ in range(2))


DEFINITIONS = {
    "cosine": lambda s, t: 1 - (s * t).sum(-1) / (s.square().sum(-1).sqrt() * t.square().sum(-1).sqrt()),
    "mse": lambda s, t: ((s - t) ** 2).mean(-1),
    "smooth_l1": lambda s, t: torch.where((s - t).abs() < 1, (s - t) ** 2 / 2, (s - t).abs() - 0.5).mean(-1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HIDDEN_KINDS)
def test_value_and_gradient(name, dtype):
    student, teacher = states(dtype)
    loss = HIDDEN_LOSSES[name](student, teacher)
    loss.sum().backward()
    leaf, fixed = student.detach().double().requires_grad_(), teacher.detach().double()
    expected = DEFINITIONS[name](leaf, fixed)
    expected.sum().backward()
    assert loss.shape == (S, B) and student.grad.dtype == dtype and teacher.grad is None
    exact = dtype == torch.float64
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-12 if exact else 3e-6)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-8}[dtype]
    torch.testing.assert_close(student.grad.double(), leaf.grad, rtol=rtol, atol=1e-12 if exact else 1e-6)


def test_cosine_equals_modelopt():
    student, teacher = states(torch.float32)
    flat = (student.view(-1, H), teacher.view(-1, H))  # as ModelOpt 0.43's HiddenStateCosineLoss computes it
    expected = F.cosine_embedding_loss(*flat, torch.ones(1), reduction="none").view(S, B)
    torch.testing.assert_close(cosine_loss(student, teacher), expected, rtol=1e-6, atol=1e-6)


def test_zero_states_have_finite_gradients():
    student = torch.zeros(3, H, requires_grad=True)
    cosine_loss(student, torch.zeros(3, H)).sum().backward()
    assert not student.grad.isnan().any()


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="projection"):
        cosine_loss(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(InputError, match="threshold"):
        smooth_l1_loss(torch.zeros(2, 4), torch.zeros(2, 4), threshold=0)
