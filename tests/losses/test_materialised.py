from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from megatron_kd.errors import InputError, NumericalFault
from megatron_kd.losses.keywords import vocab_parallel_divergence
from megatron_kd.losses.kinds import KINDS, Divergence
from megatron_kd.losses.materialised import materialised_divergence
from tests.losses import reference
from tests.ranks import run_ranks

N, V, VOCAB = 11, 48, 43  # 43 true ids: at TP4 the last shard holds 7 true ids and 5 padded slots
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Against a reference that reads the same (rounded) inputs: values are float32 sums, gradients rounded to the dtype.
VALUE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
GRADIENT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def logits(seed: int, dtype: torch.dtype = torch.float64, tokens: int = N) -> torch.Tensor:
    return (torch.randn(tokens, V, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def masks() -> dict[str, torch.Tensor]:
    some = torch.tensor([1.0, 0.0] * N)[:N]
    return {"none masked": torch.ones(N), "some masked": some, "all masked": torch.zeros(N)}


def check_case(wanted: Divergence, dtype, chunk, mask, rank=0, world=1, group=None) -> None:
    student, teacher = logits(1, dtype), logits(2, dtype)
    local = reference.shard(student, rank, world).requires_grad_()
    value = materialised_divergence(
        local, reference.shard(teacher, rank, world), wanted, group=group, chunk_tokens=chunk, vocab_size=VOCAB
    )
    (value * mask).sum().backward()
    expected, gradient = reference.value_and_gradient(student, teacher, mask, wanted, VOCAB)
    where = f"{wanted} {dtype} chunk={chunk} rank {rank}/{world}"
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=VALUE_TOLERANCE[dtype], msg=where)
    assert local.grad.dtype == dtype
    torch.testing.assert_close(
        local.grad.double(), reference.shard(gradient, rank, world),
        rtol=GRADIENT_TOLERANCE[dtype], atol=min(GRADIENT_TOLERANCE[dtype], 1e-6), msg=where,
    )  # fmt: skip


def check_all(rank: int = 0, world: int = 1, group=None) -> int:
    wanted = [Divergence(kind=kind, temperature=temperature) for kind in KINDS for temperature in (1.0, 2.0)]
    cases = list(itertools.product(wanted, DTYPES, (1, 4, N, 64), masks().values()))
    for case in cases:
        check_case(*case, rank, world, group)
    return len(cases)


def on_ranks() -> int:
    return check_all(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_value_and_gradient_on_one_rank():
    assert check_all() == 6 * 2 * 4 * 4 * 3


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_value_and_gradient_on_shards(world):
    assert run_ranks(world, on_ranks) == [576] * world


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    student, teacher = logits(3, tokens=5)[:, :9].contiguous().requires_grad_(), logits(4, tokens=5)[:, :9]
    assert torch.autograd.gradcheck(
        lambda s: vocab_parallel_divergence(s, teacher, kind=kind, temperature=2.0, vocab_size=8, chunk_tokens=2),
        (student,),
    )


def test_leading_shape_is_kept_and_the_teacher_gets_no_gradient():
    student = logits(1).view(N, 1, V).expand(N, 2, V).contiguous().requires_grad_()
    teacher = logits(2).view(N, 1, V).expand(N, 2, V).contiguous().requires_grad_()
    value = vocab_parallel_divergence(student, teacher)
    value.sum().backward()
    assert value.shape == (N, 2)
    assert teacher.grad is None and student.grad.shape == student.shape


def test_non_finite_logits_are_named():
    for name, where in (("student", 0), ("teacher", 1)):
        pair = [logits(1), logits(2)]
        pair[where][3, 5] = float("nan")
        with pytest.raises(NumericalFault, match=f"the {name} logits"):
            vocab_parallel_divergence(*pair)


def test_bad_arguments_are_refused():
    student = logits(1)
    with pytest.raises(InputError, match="one shape"):
        vocab_parallel_divergence(student, student[:, :-1])
    with pytest.raises(InputError, match="vocab_size=49"):
        vocab_parallel_divergence(student, student, vocab_size=49)
    with pytest.raises(InputError, match="temperature=0"):
        vocab_parallel_divergence(student, student, temperature=0)
    with pytest.raises(InputError, match="total_variation"):
        vocab_parallel_divergence(student, student, kind="kl")
