from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_kd.errors import InputError, NumericalFault
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.fused_inputs import Heads, ModelHead, Weighting
from megatron_kd.losses.fused_linear import DetachedLossUsed, fused_loss
from megatron_kd.losses.keywords import fused_linear_divergence, fused_linear_evaluation, vocab_parallel_divergence
from megatron_kd.losses.kinds import KINDS, Divergence
from tests.losses import reference
from tests.ranks import run_ranks

S, B, H, G, V = 8, 2, 16, 24, 64
VOCAB, TEACHER_VOCAB = 61, 57  # at TP4 the last shard holds 13 student ids and 9 shared ids
KD, LM = 0.7, 0.3
# Against a reference on the same inputs; low precision rounds the gradients once, and their sum over shards again.
RTOL = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


class Case(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor
    labels: Tensor
    mask: Tensor


def make_case(dtype: torch.dtype, mask: str = "some") -> Case:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    labels = torch.randint(0, VOCAB, (S, B), generator=generator)
    labels[1, 0] = -100
    weights = {"none": torch.ones(S, B), "all": torch.zeros(S, B), "some": torch.rand(S, B, generator=generator)}
    weights["some"][2:4] = 0
    return Case(
        randn(S, B, H), randn(V, H), randn(V), randn(S, B, G), randn(V, G) / 2, randn(V), labels, weights[mask],
    )  # fmt: skip


@functools.cache
def expected(dtype: torch.dtype, mask: str, wanted: Divergence, with_lm: bool) -> tuple[Tensor, ...]:
    """total, divergence, lm and the gradients of hidden, weight, bias: full logits, plain autograd, float64."""
    case = make_case(dtype, mask)
    hidden, weight, bias = (t.double().requires_grad_() for t in case[:3])
    student = hidden @ weight.T + bias
    teacher = case.teacher_hidden.double() @ case.teacher_weight.double().T + case.teacher_bias.double()
    divergence = reference.divergence(student, teacher, wanted, TEACHER_VOCAB)
    lm = F.cross_entropy(student[..., :VOCAB].flatten(0, 1), case.labels.flatten(), reduction="none").view(S, B)
    total = (case.mask * (KD * divergence + (LM * lm if with_lm else 0))).sum()
    gradients = torch.autograd.grad(total, (hidden, weight, bias))
    return (total.detach(), divergence.detach(), lm.detach(), *gradients)


def rows(tensor: Tensor, rank: int, world: int) -> Tensor:
    return tensor.chunk(world)[rank].clone()


def check_case(
    dtype: torch.dtype, kind: Divergence, chunk: int | None, mask: str, with_lm: bool,
    rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None, sequence_parallel: bool = False,
) -> None:  # fmt: skip
    case = make_case(dtype, mask)
    hidden = (rows(case.hidden, rank, world) if sequence_parallel else case.hidden).requires_grad_()
    teacher_hidden = rows(case.teacher_hidden, rank, world) if sequence_parallel else case.teacher_hidden
    weight, bias = (rows(t, rank, world).requires_grad_() for t in (case.weight, case.bias))
    teacher = (rows(t, rank, world) for t in (case.teacher_weight, case.teacher_bias))
    heads = Heads(
        student=ModelHead(hidden, weight, bias, VOCAB), teacher=ModelHead(teacher_hidden, *teacher, TEACHER_VOCAB)
    )
    weighting = Weighting(
        token_weights=case.mask, labels=case.labels if with_lm else None, kd_scale=KD,
        lm_scale=torch.tensor(LM, dtype=torch.float64),
    )  # fmt: skip
    total, divergence, lm = fused_loss(
        heads, kind, weighting, group=group, sequence_parallel=sequence_parallel, chunk_tokens=chunk
    )
    (total * 3).backward()
    want = expected(dtype, mask, kind, with_lm)
    values = [(total, want[0]), (divergence, want[1])] + ([(lm, want[2])] if with_lm else [])
    for value, wanted in values:
        torch.testing.assert_close(value.detach().double(), wanted, rtol=min(RTOL[dtype], 1e-5), atol=1e-5)
    want_hidden = rows(want[3], rank, world) if sequence_parallel else want[3]
    wanted_gradients = (want_hidden, rows(want[4], rank, world), rows(want[5], rank, world))
    for leaf, wanted in zip((hidden, weight, bias), wanted_gradients, strict=True):
        assert leaf.grad.dtype == dtype
        scale = 3 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(
            leaf.grad.double(), 3 * wanted, rtol=RTOL[dtype], atol=scale * min(RTOL[dtype], 2.0**-8),
            msg=lambda text: f"{dtype} {kind} chunk={chunk} {mask} lm={with_lm} TP{world}: {text}",
        )  # fmt: skip


DIVERGENCES = [Divergence(kind=kind, temperature=temperature) for kind in KINDS for temperature in (1.0, 2.0)]


def check_all(rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None) -> int:
    cases = list(itertools.product(RTOL, DIVERGENCES, (4, 5), ("none", "some", "all"), (True, False)))
    for case in cases:
        check_case(*case, rank, world, group)
    return len(cases)


def sharded_cases() -> list[tuple]:
    """Every dtype, kind and temperature twice, with the other settings in turn: a collective costs more than a case.

    The settings are 36 and the cases 96, so that each setting is met two or three times.
    """
    settings = list(itertools.product((4, 5, None), ("none", "some", "all"), (True, False), (False, True)))
    random.Random(0).shuffle(settings)
    cases = list(itertools.product(RTOL, DIVERGENCES)) * 2
    return [(*case, *setting) for case, setting in zip(cases, itertools.cycle(settings), strict=False)]


def on_ranks() -> None:
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    for *case, sequence_parallel in sharded_cases():
        check_case(*case, rank, world, group, sequence_parallel)


def all_on_ranks() -> int:
    return check_all(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_value_and_gradients_on_one_rank():
    assert check_all() == 576


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_value_and_gradients_on_shards_with_and_without_sequence_parallel(world):
    run_ranks(world, on_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_case_on_shards(world):
    assert run_ranks(world, all_on_ranks, timeout=600) == [576] * world


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    case = make_case(torch.float64)
    hidden, weight, bias = case.hidden[:2, 0].clone(), case.weight[:5].clone(), case.bias[:5].clone()
    teacher = (case.teacher_hidden[:2, 0], case.teacher_weight[:5])

    def total(*leaves: Tensor) -> Tensor:
        return fused_linear_divergence(
            *leaves[:2], *teacher, student_bias=leaves[2], kind=kind, labels=torch.tensor([3, 1]), chunk_tokens=1
        ).total

    assert torch.autograd.gradcheck(total, [t.requires_grad_() for t in (hidden, weight, bias)])


def test_tied_embedding_gets_both_gradients():
    case = make_case(torch.float64)
    tokens = case.labels.clamp_min(0)
    gradients = []
    for fused in (True, False):
        embedding = case.weight.clone().requires_grad_()
        hidden = embedding[tokens] * 2
        teacher = case.teacher_hidden, case.teacher_weight
        if fused:
            loss = fused_linear_divergence(hidden, embedding, *teacher).total
        else:
            loss = vocab_parallel_divergence(hidden @ embedding.T, teacher[0] @ teacher[1].T).sum()
        gradients += torch.autograd.grad(loss, embedding)
    torch.testing.assert_close(*gradients)


def test_frozen_parts_get_no_gradient():
    case = make_case(torch.float64)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone()
    fused_linear_divergence(hidden, weight, case.teacher_hidden, case.teacher_weight).total.backward()
    assert weight.grad is None and hidden.grad is not None
    weight.requires_grad_()
    fused_linear_divergence(case.hidden, weight, case.teacher_hidden, case.teacher_weight).total.backward()
    assert weight.grad.any()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("with_buffer", [False, True])
def test_main_grad_accumulates(tied, with_buffer):
    """As megatron-core's DDP has it: a float32 main_grad, and a hook that adds .grad unless it is there already."""
    case = make_case(torch.bfloat16)
    weight = torch.nn.Parameter(case.weight.clone())
    weight.main_grad, weight.grad_added_to_main_grad = torch.ones(V, H), False
    weight.zero_out_wgrad = tied
    hooks = []
    weight.register_post_accumulate_grad_hook(lambda parameter: hooks.append(parameter.grad.clone()))
    buffer = torch.full((V, H), 7.0) if with_buffer else None
    for _ in range(2):  # two micro-batches
        total = fused_linear_divergence(
            case.hidden, weight, case.teacher_hidden, case.teacher_weight, chunk_tokens=5, vocab_size=VOCAB,
            weight_grad_buffer=buffer,
        ).total  # fmt: skip
        (total * 2).backward()
        weight.grad = None
    leaf = case.weight.double().requires_grad_()
    logits = case.hidden.double() @ leaf.T, case.teacher_hidden.double() @ case.teacher_weight.double().T
    reference.divergence(*logits, Divergence(), VOCAB).sum().backward()
    torch.testing.assert_close(weight.main_grad.double() - 1, 4 * leaf.grad, rtol=1e-5, atol=1e-5)
    assert weight.grad_added_to_main_grad and len(hooks) == 2
    assert not tied or not hooks[0].any()


def test_buffer_reused_too_early_is_refused():
    case = make_case(torch.float32)
    weight, buffer = case.weight.clone().requires_grad_(), torch.empty(V, H)
    args = (case.hidden, weight, case.teacher_hidden, case.teacher_weight)
    first = fused_linear_divergence(*args, weight_grad_buffer=buffer).total
    fused_linear_divergence(*args, weight_grad_buffer=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_per_token_values_raise_if_differentiated():
    case = make_case(torch.float32)
    loss = fused_linear_divergence(case.hidden.clone().requires_grad_(), *case[1:2], *case[3:5], labels=case.labels)
    for values in (loss.divergence, loss.lm):
        with pytest.raises(DetachedLossUsed, match="token_weights"):
            values.sum().backward()
    with pytest.raises(DetachedLossUsed):
        (loss.total + loss.divergence.mean()).backward()


def test_all_masked_is_zero_with_a_graph():
    case = make_case(torch.float32, "all")
    hidden = case.hidden.clone().requires_grad_()
    total = fused_linear_divergence(
        hidden, case.weight, case.teacher_hidden, case.teacher_weight, token_weights=case.mask, labels=case.labels
    ).total
    assert total == 0 and total.grad_fn is not None
    total.backward()
    assert not hidden.grad.any()


def test_batch_split_gives_the_same_total_and_gradient():
    case = make_case(torch.float64)
    totals, gradients = [], []
    for parts in (1, 2, 3):
        weight = case.weight.clone().requires_grad_()
        total = torch.zeros(())
        for part in range(parts):
            hidden, teacher = case.hidden.chunk(parts)[part], case.teacher_hidden.chunk(parts)[part]
            mask = case.mask.chunk(parts)[part]
            total = (
                total
                + fused_linear_divergence(
                    hidden, weight, teacher, case.teacher_weight, token_weights=mask, chunk_tokens=5
                ).total
            )
        total.backward()
        totals.append(total.item())
        gradients.append(weight.grad)
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def check_evaluation(
    teacher_vocab: int, options: dict, rank: int = 0, world: int = 1, group: dist.ProcessGroup | None = None
) -> None:
    """Loss, KL at temperature 1 and rank of the teacher's choice against their definitions; the loss may be another."""
    case = make_case(torch.float64)
    student = case.hidden @ case.weight.T
    teacher = student + case.teacher_hidden @ case.teacher_weight.T / 4
    # The teacher's hidden state holds the student's too, so that some choices agree and some do not.
    teacher_hidden = torch.cat((case.hidden, case.teacher_hidden), -1)
    teacher_weight = torch.cat((case.weight, case.teacher_weight / 4), -1)
    divergence, lm, kl, ranks = fused_linear_evaluation(
        case.hidden, rows(case.weight, rank, world), teacher_hidden, rows(teacher_weight, rank, world),
        labels=case.labels, group=group, vocab_size=VOCAB, teacher_vocab_size=teacher_vocab, chunk_tokens=5,
        **options,
    )  # fmt: skip
    shared = min(VOCAB, teacher_vocab)
    choice = teacher[..., :shared].argmax(-1, keepdim=True)
    wanted = (student[..., :shared] > student.gather(-1, choice)).sum(-1)
    assert torch.equal(ranks, wanted) and wanted.min() == 0 and wanted.max() > 1
    torch.testing.assert_close(kl, reference.divergence(student, teacher, Divergence(), shared))
    torch.testing.assert_close(divergence, vocab_parallel_divergence(student, teacher, vocab_size=shared, **options))
    torch.testing.assert_close(lm, vocab_parallel_cross_entropy(student, case.labels, vocab_size=VOCAB))
    assert not divergence.requires_grad


LOSSES = ({}, {"kind": "reverse_kl"}, {"kind": "jsd", "temperature": 2.0, "temperature_squared": True})
TEACHER_VOCABS = (VOCAB, 40, 63)  # equal, fewer, more


def evaluation_on_ranks() -> None:
    for case in itertools.product(TEACHER_VOCABS, LOSSES):
        check_evaluation(*case, dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_evaluation():
    for case in itertools.product(TEACHER_VOCABS, LOSSES):
        check_evaluation(*case)
    run_ranks(2, evaluation_on_ranks)


def test_heads_of_different_width_align_on_the_shared_ids_on_one_rank():
    case = make_case(torch.float64)
    teacher_weight = case.teacher_weight[:TEACHER_VOCAB]
    loss = fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, teacher_weight, vocab_size=VOCAB)
    student, teacher = case.hidden @ case.weight[:TEACHER_VOCAB].T, case.teacher_hidden @ teacher_weight.T
    torch.testing.assert_close(loss.divergence, reference.divergence(student, teacher, Divergence()))


def refusals_on_ranks() -> None:
    case = make_case(torch.float32)
    with pytest.raises(InputError, match="hold different ids"):
        fused_linear_divergence(
            case.hidden, case.weight, case.teacher_hidden, case.teacher_weight[:-1], group=dist.group.WORLD
        )


def test_bad_input_is_refused_by_name():
    run_ranks(2, refusals_on_ranks)
    case = make_case(torch.float32)
    args = (case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    with pytest.raises(InputError, match="teacher_hidden"):
        fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden[1:], case.teacher_weight)
    with pytest.raises(InputError, match="token_weights"):
        fused_linear_divergence(*args, token_weights=torch.ones(3))
    with pytest.raises(InputError, match="outside"):
        fused_linear_divergence(*args, labels=case.labels + V)
    for position, name in ((0, "student"), (2, "teacher")):
        faulty = [t.clone() for t in args]
        faulty[position][1, 0, 3] = torch.nan
        with pytest.raises(NumericalFault, match=f"the {name} logits"):
            fused_linear_divergence(*faulty)


def padded_last_shard(true_size: int, width: int) -> tuple[float, float]:
    """On a rank: totals of the fused loss and of the divergence of the same logits, in chunks of the default size."""
    generator = torch.Generator().manual_seed(1)
    hidden, teacher_hidden = (torch.randn(400, 4, generator=generator) for _ in range(2))
    heads = [torch.randn(width, 4, generator=generator) for _ in range(2)]
    group, world = dist.group.WORLD, dist.get_world_size()
    rows = slice(width // world * dist.get_rank(), width // world * (dist.get_rank() + 1))
    student_VH, teacher_VH = (head[rows] for head in heads)
    loss = fused_linear_divergence(
        hidden, student_VH, teacher_hidden, teacher_VH, group=group, vocab_size=true_size,
        labels=torch.arange(400), token_weights=torch.ones(400),
    )  # fmt: skip
    logits = hidden @ student_VH.T, teacher_hidden @ teacher_VH.T
    divergence = vocab_parallel_divergence(*logits, group=group, vocab_size=true_size)
    return loss.total.item(), divergence.sum().item()


def test_a_last_shard_with_padding_keeps_the_ranks_in_step():
    """Chunks sized by a rank's own ids would differ here, 174 tokens on one rank and 175 on the other."""
    (expected_total, expected_divergence), *_ = run_ranks(1, padded_last_shard, 12000, 12032)
    for total, divergence in run_ranks(2, padded_last_shard, 12000, 12032):
        assert total == pytest.approx(expected_total, rel=1e-5)
        assert divergence == pytest.approx(expected_divergence, rel=1e-5)
