"""Memory by counting allocations, so that these tests say the same on every machine."""

from __future__ import annotations

import pytest
import torch

from megatron_kd.losses.divergence import vocab_parallel_divergence
from megatron_kd.losses.fused_linear import fused_linear_divergence, fused_linear_evaluation
from megatron_kd.losses.kinds import KINDS
from tools.bench.allocations import AllocationCounter

V, H, CHUNK = 2000, 8, 4


def fused_peak(tokens: int, kind: str = "forward_kl", dtype: torch.dtype = torch.float32) -> AllocationCounter:
    hidden = torch.randn(tokens, H).to(dtype).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(V, H).to(dtype))
    weight.main_grad = torch.zeros(V, H)
    buffer, labels = torch.empty(V, H), torch.zeros(tokens, dtype=torch.long)
    with AllocationCounter() as counter:
        loss = fused_linear_divergence(
            hidden, weight, hidden, weight, kind=kind, labels=labels, chunk_tokens=CHUNK, temperature=2.0,
            weight_grad_buffer=buffer,
        )  # fmt: skip
        loss.total.backward()
    return counter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_form_allocates_no_tensor_of_the_size_of_the_logits(kind, dtype):
    tokens = 64
    counter = fused_peak(tokens, kind, dtype)
    assert counter.largest_numel < tokens * V / 3
    heads_as_float32 = 2 * V * H * 4 if dtype == torch.bfloat16 else 0  # in blocks, of which these are one each
    assert counter.peak_bytes < 12 * CHUNK * V * 4 + heads_as_float32


def test_fused_memory_grows_with_the_chunk_and_not_with_the_tokens():
    peaks = [fused_peak(tokens).peak_bytes for tokens in (64, 128, 256)]
    per_token = 4 * (H * 3 + 40)  # hidden states, their gradients, and per-token statistics
    assert peaks[1] - peaks[0] <= 64 * per_token < 64 * V
    assert peaks[2] - peaks[1] <= 128 * per_token


def test_evaluation_allocates_no_tensor_of_the_size_of_the_logits():
    hidden, weight = torch.randn(64, H), torch.randn(V, H)
    with AllocationCounter() as counter:
        fused_linear_evaluation(hidden, weight, hidden, weight, chunk_tokens=CHUNK)
    assert counter.largest_numel < 64 * V / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_materialised_form_keeps_one_gradient_and_nothing_else(kind, dtype):
    tokens = 128
    student, teacher = (torch.randn(tokens, V).to(dtype) for _ in range(2))
    student.requires_grad_()
    unit = student.numel() * student.element_size()
    with AllocationCounter() as counter:
        loss = vocab_parallel_divergence(student, teacher, kind=kind, chunk_tokens=CHUNK)
        forward_peak, kept = counter.peak_bytes, counter.live_bytes
        loss.sum().backward()
    per_token = 8 * 40
    assert kept <= tokens * per_token
    assert forward_peak <= 8 * CHUNK * V * 4 + tokens * per_token
    assert counter.peak_bytes <= unit + 8 * CHUNK * V * 4 + tokens * per_token
