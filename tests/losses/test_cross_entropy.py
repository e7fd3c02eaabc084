from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_kd.errors import InputError, NumericalFault
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from tests.losses import reference
from tests.ranks import run_ranks

N, V, VOCAB = 11, 48, 35  # at TP4 the last shard has no true id at all


def case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, VOCAB, (N,), generator=generator)
    labels[[2, 7]] = -100
    return (torch.randn(N, V, generator=generator) * 3).to(dtype), labels


def check(rank: int = 0, world: int = 1, group=None) -> None:
    for dtype, chunk in itertools.product((torch.float64, torch.float32, torch.bfloat16, torch.float16), (1, 4, None)):
        logits, labels = case(dtype)
        local = reference.shard(logits, rank, world).requires_grad_()
        loss = vocab_parallel_cross_entropy(local, labels, group=group, vocab_size=VOCAB, chunk_tokens=chunk)
        loss.sum().backward()
        leaf = logits.double().requires_grad_()
        expected = F.cross_entropy(leaf[:, :VOCAB], labels, reduction="none")
        expected.sum().backward()
        exact = dtype == torch.float64
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-12 if exact else 3e-6)
        rtol = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
        expected_grad = reference.shard(leaf.grad, rank, world)
        torch.testing.assert_close(local.grad.double(), expected_grad, rtol=rtol, atol=1e-12 if exact else 1e-6)
        assert loss[2] == 0 and not local.grad[2].any()


def on_ranks() -> None:
    check(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_value_and_gradient():
    check()


@pytest.mark.parametrize("world", [2, 4])
def test_value_and_gradient_on_shards(world):
    run_ranks(world, on_ranks)


def test_gradcheck():
    logits, labels = case(torch.float64)
    logits = logits[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: vocab_parallel_cross_entropy(x, labels[:5], vocab_size=VOCAB, chunk_tokens=2), (logits,)
    )


def test_faults_are_named():
    logits, labels = case(torch.float32)
    with pytest.raises(InputError, match="outside"):
        vocab_parallel_cross_entropy(logits, labels + VOCAB, vocab_size=VOCAB)
    with pytest.raises(InputError, match="leading shape"):
        vocab_parallel_cross_entropy(logits, labels[1:])
    logits[0, 0] = torch.inf
    with pytest.raises(NumericalFault):
        vocab_parallel_cross_entropy(logits, labels)
