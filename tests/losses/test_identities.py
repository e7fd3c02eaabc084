"""Identities that hold for all numbers, and the number of collectives of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_kd.errors import InputError
from megatron_kd.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_kd.losses.keywords import (
    fused_linear_divergence,
    vocab_parallel_divergence,
    vocab_parallel_topk_divergence,
)
from megatron_kd.losses.kinds import KINDS, TAILS, Divergence
from tests.losses import reference
from tests.ranks import run_ranks

N, V = 9, 40


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("kind", KINDS)
def test_equal_inputs_give_zero_value_and_gradient(kind):
    student = logits(1).float().requires_grad_()
    value = vocab_parallel_divergence(student, student.detach(), kind=kind)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(N), rtol=0, atol=3e-7)
    torch.testing.assert_close(student.grad, torch.zeros(N, V), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_not_negative_and_ignore_a_shift_of_the_logits(kind):
    value = vocab_parallel_divergence(logits(1), logits(2), kind=kind)
    shifted = vocab_parallel_divergence(logits(1) + 100, logits(2) - 50, kind=kind)
    assert (value > 0).all()
    torch.testing.assert_close(shifted, value)


def test_jsd_limits():
    student, teacher = logits(1), logits(2)
    forward, reverse = (vocab_parallel_divergence(student, teacher, kind=kind) for kind in KINDS[:2])

    def jsd(beta: float) -> torch.Tensor:
        return vocab_parallel_divergence(student, teacher, kind="jsd", beta=beta)

    torch.testing.assert_close(jsd(1e-7) / 1e-7, forward, rtol=1e-3, atol=0)
    torch.testing.assert_close(jsd(1 - 1e-7) / 1e-7, reverse, rtol=1e-3, atol=0)
    assert torch.equal(jsd(0), forward) and torch.equal(jsd(1), reverse)
    torch.testing.assert_close(
        jsd(0.5), vocab_parallel_divergence(teacher, student, kind="jsd", beta=0.5), rtol=1e-12, atol=0
    )
    assert (jsd(0.5) <= torch.log(torch.tensor(2.0))).all()


def test_skewed_limits():
    student, teacher = logits(1), logits(2)
    for skewed, plain in (("skewed_forward_kl", "forward_kl"), ("skewed_reverse_kl", "reverse_kl")):
        exact = vocab_parallel_divergence(student, teacher, kind=plain)
        near = vocab_parallel_divergence(student, teacher, kind=skewed, alpha=1e-9)
        torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-6)
        assert torch.equal(vocab_parallel_divergence(student, teacher, kind=skewed, alpha=0), exact)


@pytest.mark.parametrize(("kind", "options"), [("jsd", {"beta": 0.1}), ("jsd", {"beta": 0.9})] + [
    (kind, {"alpha": alpha}) for kind in ("skewed_forward_kl", "skewed_reverse_kl") for alpha in (0.1, 0.7)
])  # fmt: skip
def test_mixture_weights(kind, options):
    student, teacher, weights = logits(1).requires_grad_(), logits(2), torch.rand(N)
    value = vocab_parallel_divergence(student, teacher, kind=kind, **options)
    (value * weights).sum().backward()
    expected, gradient = reference.value_and_gradient(student, teacher, weights, Divergence(kind=kind, **options))
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(student.grad, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_all_masked_is_zero_with_a_graph(kind):
    """The fused form's twin is in test_fused_linear."""
    student = logits(1).float().requires_grad_()
    total = (vocab_parallel_divergence(student, logits(2).float(), kind=kind) * torch.zeros(N)).sum()
    assert total == 0 and total.grad_fn is not None
    total.backward()
    assert not student.grad.any()


@pytest.mark.parametrize("tail", TAILS)
def test_all_masked_is_zero_with_a_graph_under_top_k(tail):
    student = logits(1).float().requires_grad_()
    per_token = vocab_parallel_topk_divergence(student, logits(2).float(), 3, tail=tail).divergence
    total = (per_token * torch.zeros(N)).sum()
    assert total == 0 and total.grad_fn is not None
    total.backward()
    assert not student.grad.any()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 5, V])
def test_top_k_of_equal_inputs_is_zero_but_for_what_a_tail_adds(tail, k):
    student = logits(1).requires_grad_()
    loss = vocab_parallel_topk_divergence(student, student.detach(), k, tail=tail)
    loss.divergence.sum().backward()
    # Renormalised, the teacher's k tokens are likelier than the student's by 1 / mass, and so differ unless k = V.
    wanted = -loss.teacher_mass.log() if tail == "renormalise" else torch.zeros(N, dtype=torch.float64)
    torch.testing.assert_close(loss.divergence, wanted, rtol=1e-9, atol=1e-12)
    if tail == "bucket" or k == V:
        torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_temperature_squared_multiplies_value_and_gradient():
    results = []
    for switch in (False, True):
        student = logits(1).requires_grad_()
        value = vocab_parallel_divergence(student, logits(2), temperature=3.0, temperature_squared=switch)
        value.sum().backward()
        hidden = torch.eye(V, dtype=torch.float64)
        fused = fused_linear_divergence(
            logits(1), hidden, logits(2), hidden, temperature=3.0, temperature_squared=switch
        )
        torch.testing.assert_close(fused.divergence, value)
        results.append((value, student.grad))
    torch.testing.assert_close(results[1][0], results[0][0] * 9)
    torch.testing.assert_close(results[1][1], results[0][1] * 9)


def test_distant_distributions_stay_finite_in_float32():
    student, teacher = torch.zeros(1, 4), torch.zeros(1, 4)
    student[0, 0], teacher[0, 1] = 500.0, 500.0
    for kind in KINDS:
        leaf = student.clone().requires_grad_()
        value = vocab_parallel_divergence(leaf, teacher, kind=kind)
        value.sum().backward()
        assert value.isfinite().all() and leaf.grad.isfinite().all(), kind


@pytest.mark.parametrize(("kind", "options"), [
    ("jsd", {"beta": 1.5}), ("skewed_forward_kl", {"alpha": 1.0}), ("skewed_reverse_kl", {"alpha": -0.1})
])  # fmt: skip
def test_weights_out_of_range_are_refused(kind, options):
    with pytest.raises(InputError, match=next(iter(options))):
        vocab_parallel_divergence(logits(1), logits(2), kind=kind, **options)


class CollectiveCounter:
    """Counts calls of the collectives that the losses use."""

    NAMES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "broadcast")

    def __enter__(self) -> CollectiveCounter:
        self.count = 0
        self.originals = {name: getattr(dist, name) for name in self.NAMES}
        for name in self.NAMES:
            setattr(dist, name, self._counted(name))
        return self

    def _counted(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self.originals[name](*args, **kwargs)

        return call

    def __exit__(self, *exc: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)


def count_collectives() -> dict[str, int]:
    """Collectives of one forward and backward, by call."""
    rank, group, counts = dist.get_rank(), dist.group.WORLD, {}

    def count(name: str, call: Any) -> None:
        with CollectiveCounter() as counter:
            call().sum().backward()
        counts[name] = counter.count

    student, teacher = (reference.shard(logits(seed), rank, 2) for seed in (1, 2))
    student.requires_grad_()
    for kind in KINDS:
        for chunk in (1, N):
            count(
                f"{kind} {chunk}",
                lambda kind=kind, chunk=chunk: vocab_parallel_divergence(
                    student, teacher, kind=kind, group=group, chunk_tokens=chunk
                ),
            )
    labels = torch.zeros(N, dtype=torch.long)
    count("ce", lambda: vocab_parallel_cross_entropy(student, labels, group=group, chunk_tokens=2))
    count("topk", lambda: vocab_parallel_topk_divergence(student, teacher, 3, group=group, chunk_tokens=2).divergence)
    hidden = torch.randn(8, V, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, V, dtype=torch.float64).requires_grad_()
    for name, kind, sequence_parallel in (("kl", "forward_kl", 0), ("kl sp", "forward_kl", 1), ("jsd", "jsd", 0)):
        count(
            f"fused {name}",
            lambda kind=kind, sequence_parallel=sequence_parallel: fused_linear_divergence(
                hidden, weight, hidden, weight, kind=kind, group=group, chunk_tokens=4,
                labels=torch.zeros(8 << sequence_parallel, dtype=torch.long), sequence_parallel=bool(sequence_parallel),
            ).total,
        )  # fmt: skip
    return counts


def test_collectives_of_a_forward_and_backward():
    counts, other = run_ranks(2, count_collectives)
    assert counts == other
    for kind in KINDS:
        wanted = 1 if kind in ("forward_kl", "reverse_kl") else 2
        assert counts.pop(f"{kind} 1") == counts.pop(f"{kind} {N}") == wanted, kind
    assert counts == {
        "ce": 1,
        "topk": 3,
        "fused kl": 2 + 1,  # two tiles, hidden gradient
        "fused kl sp": 4 + 3,  # four tiles, two gathers, reduce-scatter
        "fused jsd": 2 * 2 + 1,
    }
