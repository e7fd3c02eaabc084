"""Memory by counting allocations, so that these tests say the same on every machine."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_kd.losses.keywords import fused_linear_divergence, fused_linear_evaluation, vocab_parallel_divergence
from megatron_kd.losses.kinds import KINDS
from tests.ranks import run_ranks
from tools.bench.allocations import AllocationCounter

V, H, CHUNK = 2000, 8, 4
PER_TOKEN = 8 * 40  # bytes of hidden states, their gradient and statistics


def fused_peak(
    tokens: int,
    kind: str = "forward_kl",
    dtype: torch.dtype = torch.float32,
    width: int = V,
    group: dist.ProcessGroup | None = None,
) -> AllocationCounter:
    hidden = torch.randn(tokens, H).to(dtype).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(width, H).to(dtype))
    weight.main_grad = torch.zeros(width, H)
    buffer, labels = torch.empty(width, H), torch.zeros(tokens, dtype=torch.long)
    with AllocationCounter() as counter:
        loss = fused_linear_divergence(
            hidden, weight, hidden, weight, kind=kind, labels=labels, chunk_tokens=CHUNK, temperature=2.0,
            weight_grad_buffer=buffer, group=group,
        )  # fmt: skip
        loss.total.backward()
    return counter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_form_allocates_no_tensor_of_the_size_of_the_logits(kind, dtype):
    tokens = 64
    counter = fused_peak(tokens, kind, dtype)
    assert counter.largest_numel < tokens * V / 3
    # Both models' logits, exponentials, the LM loss's, and what a kind needs for a moment.
    assert counter.peak_bytes < most_units(kind) * CHUNK * V * 4 + tokens * PER_TOKEN


def most_units(kind: str) -> int:
    """Tensors of a chunk of logits that the fused form holds at once, with an LM loss at another temperature."""
    return 4 if kind in ("forward_kl", "reverse_kl") else 7


def peaks_on_shards() -> dict[tuple[str, torch.dtype], tuple[int, int]]:
    """The largest tensor's elements and the peak bytes of a rank, by kind and type."""
    width, group = V // dist.get_world_size(), dist.group.WORLD
    cases = [(kind, dtype) for kind in KINDS for dtype in (torch.float32, torch.bfloat16)]
    counters = {case: fused_peak(64, *case, width, group) for case in cases}
    return {case: (counter.largest_numel, counter.peak_bytes) for case, counter in counters.items()}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_memory_of_the_fused_form_follows_the_shard(world):
    for peaks in run_ranks(world, peaks_on_shards):
        for (kind, dtype), (largest, peak) in peaks.items():
            assert largest < 64 * V / world / 3, (kind, dtype)
            assert peak < most_units(kind) * CHUNK * V / world * 4 + 64 * PER_TOKEN, (kind, dtype)


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
