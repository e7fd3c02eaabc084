from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_kd.losses.top_choice import (
    vocab_parallel_argmax,
    vocab_parallel_choice_rank,
    vocab_parallel_topk_agreement,
)
from tests.losses import reference
from tests.ranks import run_ranks

N, V, VOCAB = 40, 32, 27


def tied_logits(seed: int) -> torch.Tensor:
    """Few distinct values, so that nearly every row has ties, across shards too; the padding is the largest."""
    logits = torch.randint(0, 4, (N, V), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    logits[:, VOCAB:] = 9
    return logits


def first_argmax(logits: torch.Tensor) -> torch.Tensor:
    rows = logits[:, :VOCAB].tolist()
    return torch.tensor([row.index(max(row)) for row in rows])


def agrees(k: int) -> torch.Tensor:
    student, target = tied_logits(1)[:, :VOCAB].tolist(), first_argmax(tied_logits(2)).tolist()
    choices = [sorted(range(VOCAB), key=lambda i, row=row: (-row[i], i))[:k] for row in student]
    return torch.tensor([wanted in chosen for wanted, chosen in zip(target, choices, strict=True)])


def check(rank: int = 0, world: int = 1, group=None) -> None:
    student, teacher = (reference.shard(tied_logits(seed), rank, world) for seed in (1, 2))
    ids = vocab_parallel_argmax(student, group=group, vocab_size=VOCAB)
    assert torch.equal(ids, first_argmax(tied_logits(1)))
    for k in (1, 3, 8):
        agreement = vocab_parallel_topk_agreement(student, teacher, k=k, group=group, vocab_size=VOCAB)
        assert torch.equal(agreement, agrees(k)), k
    rank = vocab_parallel_choice_rank(student, teacher, group=group, vocab_size=VOCAB)
    assert torch.equal(rank, sum((~agrees(k)).long() for k in range(1, VOCAB + 1)))  # the first k that holds it, less 1
    assert 0 < agrees(1).sum() < agrees(8).sum() < N


def on_ranks() -> None:
    check(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def test_choices_do_not_depend_on_the_sharding():
    check()
    run_ranks(2, on_ranks)


def test_leading_shape_is_kept():
    logits = tied_logits(1).view(8, 5, V)
    assert vocab_parallel_argmax(logits).shape == (8, 5)
    assert vocab_parallel_topk_agreement(logits, logits).shape == (8, 5)
