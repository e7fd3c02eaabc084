from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from megatron_kd.errors import InputError, NumericalFault
from megatron_kd.losses.keywords import vocab_parallel_divergence, vocab_parallel_topk_divergence
from megatron_kd.losses.kinds import TAILS, Divergence
from megatron_kd.losses.log_probs import log_probs_at
from megatron_kd.losses.topk import TopK, topk_divergence, vocab_parallel_topk
from tests.losses import reference
from tests.ranks import run_ranks

N, V, VOCAB = 7, 32, 23  # at TP4 the last shard has no true id


def logits(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    values = (torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)
    values[:, VOCAB:] = 50  # padding that would win every top-k
    return values


def definition(student: torch.Tensor, teacher: torch.Tensor, k: int, tail: str, temperature: float) -> torch.Tensor:
    log_q = reference.log_softmax64(student, temperature, VOCAB)
    log_p = reference.log_softmax64(teacher, temperature, VOCAB)
    top = log_p.topk(k, dim=-1)
    p, log_q = top.values.exp(), log_q.gather(-1, top.indices)
    if tail == "renormalise":
        p = p / p.sum(-1, keepdim=True)
    value = (p * (p.log() - log_q)).sum(-1)
    if tail == "bucket" and k < VOCAB:
        rest_p, rest_q = 1 - p.sum(-1), 1 - log_q.exp().sum(-1)
        value = value + rest_p * (rest_p.log() - rest_q.log())
    return value


def check(rank: int = 0, world: int = 1, group=None) -> None:
    weights = torch.arange(1.0, N + 1)
    cases = itertools.product(TAILS, (1, 5, VOCAB - 1, VOCAB), (1.0, 2.0), (torch.float64, torch.float32), (3, None))
    for tail, k, temperature, dtype, chunk in cases:
        student, teacher = logits(1, dtype), logits(2, dtype)
        local = reference.shard(student, rank, world).requires_grad_()
        loss = vocab_parallel_topk_divergence(
            local, reference.shard(teacher, rank, world), k,
            tail=tail, temperature=temperature, group=group, vocab_size=VOCAB, chunk_tokens=chunk,
        )  # fmt: skip
        (loss.divergence * weights).sum().backward()
        leaf = student.double().requires_grad_()
        expected = definition(leaf, teacher, k, tail, temperature)
        (expected * weights).sum().backward()
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5  # the definition's 1 - mass cancels, too
        where = f"{tail} k={k} T={temperature} {dtype} chunk={chunk} rank {rank}/{world}"
        torch.testing.assert_close(loss.divergence.double(), expected, rtol=tolerance, atol=tolerance, msg=where)
        gradient = reference.shard(leaf.grad, rank, world)
        torch.testing.assert_close(local.grad.double(), gradient, rtol=tolerance, atol=tolerance, msg=where)
        mass = reference.log_softmax64(teacher, temperature, VOCAB).exp().topk(k).values.sum(-1)
        torch.testing.assert_close(loss.teacher_mass.double(), mass, rtol=1e-6, atol=1e-6)


def on_ranks() -> None:
    check(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_value_gradient_and_mass():
    check()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_value_gradient_and_mass_on_shards(world):
    run_ranks(world, on_ranks)


@pytest.mark.parametrize("tail", TAILS)
def test_gradcheck(tail):
    student, teacher = logits(3)[:3].clone().requires_grad_(), logits(4)[:3]
    assert torch.autograd.gradcheck(
        lambda s: vocab_parallel_topk_divergence(s, teacher, 4, tail=tail, vocab_size=VOCAB).divergence, (student,)
    )


def test_k_of_the_whole_vocabulary_is_the_full_divergence():
    student, teacher = logits(1), logits(2)
    full = vocab_parallel_divergence(student, teacher, vocab_size=VOCAB)
    for tail in TAILS:
        loss = vocab_parallel_topk_divergence(student, teacher, VOCAB, tail=tail, vocab_size=VOCAB)
        torch.testing.assert_close(loss.divergence, full)
        torch.testing.assert_close(loss.teacher_mass, torch.ones(N, dtype=torch.float64))


def test_bucket_sums_to_one_and_bounds_the_full_divergence_from_below():
    student, teacher = logits(1), logits(2)
    top = vocab_parallel_topk(teacher, 5, vocab_size=VOCAB)
    torch.testing.assert_close(top.mass + top.log_tail.exp(), torch.ones(N, dtype=torch.float64))
    full = vocab_parallel_divergence(student, teacher, vocab_size=VOCAB)
    previous = torch.zeros(N, dtype=torch.float64)
    for k in range(1, VOCAB + 1):  # splitting the bucket can only add information
        loss = vocab_parallel_topk_divergence(student, teacher, k, vocab_size=VOCAB).divergence
        assert (loss >= previous - 1e-12).all()
        previous = loss
    torch.testing.assert_close(previous, full)


def test_a_tail_too_small_for_float32_stays_finite():
    student = torch.zeros(1, 8)
    student[0, 0] = 200.0  # tail mass about exp(-200)
    student.requires_grad_()
    teacher = torch.eye(1, 8)  # so that token 0 is its first; within the tail both models are uniform
    loss = vocab_parallel_topk_divergence(student, teacher, 1).divergence
    loss.sum().backward()
    expected, gradient = reference.value_and_gradient(student, teacher, torch.ones(1), Divergence())
    assert loss.isfinite() and student.grad.isfinite().all()
    torch.testing.assert_close(student.grad.double(), gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0.0)


def test_bad_input_is_refused():
    student = logits(1)
    for k in (0, VOCAB + 1):
        with pytest.raises(InputError, match=f"k={k}"):
            vocab_parallel_topk(student, k, vocab_size=VOCAB)
    with pytest.raises(InputError, match="tail='free'"):
        vocab_parallel_topk_divergence(student, student, 3, tail="free")
    with pytest.raises(InputError, match="one shape"):
        vocab_parallel_topk_divergence(student, student[1:], 3)
    with pytest.raises(InputError, match="leading shape"):
        log_probs_at(student, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(NumericalFault):
        vocab_parallel_topk(student / 0, 3)


def test_leading_shape_and_a_teacher_from_elsewhere():
    student = logits(1).view(N, 1, V)
    teacher = TopK(
        torch.tensor([[[3, 1]]] * N),
        torch.log(torch.tensor([0.5, 0.25])).expand(N, 1, 2),
        torch.full((N, 1), 0.25).log(),
    )
    log_probs, log_tail = log_probs_at(student, teacher.ids)
    assert topk_divergence(log_probs, log_tail, teacher, tail="bucket").shape == (N, 1)
