"""Distillation on the teacher's top K tokens, with an explicit choice for the rest of its mass.

The student is always normalised over the full vocabulary, so its mass outside the K tokens is never free. The loss
reads its K log-probabilities and the log of the remaining mass (the tail). Only those have a gradient written by hand
(`log_probs.log_probs_at`); the divergence of K + 1 numbers is plain autograd. The teacher's side may also come from a
file of ids and log-probabilities.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), K top-k, R ranks.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from megatron_kd.errors import InputError
from megatron_kd.losses.faults import Faults
from megatron_kd.losses.kinds import Divergence, Tail, Truncation
from megatron_kd.losses.log_probs import gathered_log_probs, log_probs_at
from megatron_kd.losses.shard import Sharding, VocabShard, require_one_shape
from megatron_kd.losses.tiles import Tiling


class TopK(NamedTuple):
    """A distribution's top K tokens.

    Attributes:
        ids: [..., K] global ids, the most likely first.
        log_probs: [..., K] log-probabilities over the whole vocabulary.
        log_tail: [...] log of the mass of all other tokens; -inf if there are none.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor

    @property
    def mass(self) -> Tensor:
        """[...] the probability of the K tokens together."""
        return self.log_probs.exp().sum(-1)


class TopKLoss(NamedTuple):
    """Per-token divergence [...], differentiable, and the teacher's mass on its K tokens [...]."""

    divergence: Tensor
    teacher_mass: Tensor


def vocab_parallel_topk(
    logits: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    faults: Faults | None = None,
    **sharding: Unpack[Sharding],
) -> TopK:
    """The teacher's top k tokens and their log-probabilities, without gradients; two collectives.

    Args:
        logits: [..., V/tp], this rank's shard.
        k: number of tokens; at most the vocabulary size.
        temperature: T; the logits are divided by it.
        faults: counts numerical faults, for a step whose ranks must all raise together; None raises here.
        sharding: see `Sharding`.

    Returns:
        `TopK`, the same on every rank; float32 (float64 for float64 logits).

    Raises:
        InputError: if k is not in [1, vocab_size].
        NumericalFault: logits that are not finite, on any rank; not with `faults`.
    """
    tiling = Tiling.of(logits, **sharding)
    shard = tiling.shard
    if not 1 <= k <= shard.vocab_size:
        raise InputError(f"k={k} must lie between 1 and the vocabulary size, {shard.vocab_size}")
    with torch.no_grad():
        logits_NV = logits.detach().reshape(-1, logits.shape[-1])
        ids_NK = _topk_ids(logits_NV[:, : shard.width], k, shard)
        log_probs_NK, log_tail_N, _ = gathered_log_probs(
            logits_NV, ids_NK, 1 / temperature, tiling, side="teacher", faults=faults
        )
    leading = logits.shape[:-1]
    return TopK(ids_NK.view(*leading, k), log_probs_NK.view(*leading, k), log_tail_N.view(leading))


def topk_divergence(student_log_probs: Tensor, student_log_tail: Tensor, teacher: TopK, *, tail: Tail) -> Tensor:
    """Forward KL of distributions known at K tokens and by the mass of the rest, [...].

    - "bucket": KL over K + 1 outcomes, the last holding all other tokens. Never negative; with K = V the full KL.
    - "renormalise": the teacher's K probabilities are scaled to sum to 1, the rest count as impossible.
    - "ignore": the K terms of the full KL, as they are. May be negative.

    Args:
        student_log_probs: [..., K] at the teacher's ids, normalised over the whole vocabulary.
        student_log_tail: [...].
        teacher: the teacher's top K tokens.
        tail: one of `TAILS`.

    Raises:
        InputError: for an unknown `tail`.
    """
    Truncation(teacher.ids.shape[-1], tail)  # refuses an unknown tail
    log_p = teacher.log_probs
    if tail == "renormalise":
        log_p = log_p - torch.logsumexp(log_p, -1, keepdim=True)
    divergence = (log_p.exp() * (log_p - student_log_probs)).sum(-1)
    if tail != "bucket":
        return divergence
    empty = teacher.log_tail == -torch.inf  # 0 log 0 = 0, without -inf - -inf on the way, nor in the gradient
    difference = torch.where(empty, 0.0, teacher.log_tail) - torch.where(empty, 0.0, student_log_tail)
    return divergence + teacher.log_tail.exp() * difference


def topk_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    truncation: Truncation,
    divergence: Divergence,
    *,
    faults: Faults | None = None,
    **sharding: Unpack[Sharding],
) -> TopKLoss:
    """Forward KL on the teacher's top k tokens, for each token; three collectives of O(k) numbers per token.

    Args:
        student_logits: [..., V/tp], this rank's shard.
        teacher_logits: the same shape, never given a gradient.
        truncation: the number of the teacher's tokens, and the treatment of the others.
        divergence: the forward KL with its temperature; there is no truncated form of another kind.
        faults: as in `vocab_parallel_topk`.
        sharding: see `Sharding`; where the vocabularies differ, the k tokens are among the ids they share, and both
            distributions are over these.

    Returns:
        `TopKLoss`, the same on every rank.

    Raises:
        InputError: shapes that differ, another kind of divergence, or k outside [1, vocab_size].
        NumericalFault: logits that are not finite, on any rank; not with `faults`.
    """
    if divergence.kind != "forward_kl":
        raise InputError(f"kind={divergence.kind!r} has no top-k form: use kind='forward_kl', or compare all tokens")
    require_one_shape(student_logits, teacher_logits)
    temperature = divergence.temperature
    teacher = vocab_parallel_topk(teacher_logits, truncation.k, temperature=temperature, faults=faults, **sharding)
    student = log_probs_at(student_logits, teacher.ids, temperature=temperature, faults=faults, **sharding)
    value = topk_divergence(*student, teacher, tail=truncation.tail)
    return TopKLoss(value * divergence.scale, teacher.mass)


def _topk_ids(logits_NV: Tensor, k: int, shard: VocabShard) -> Tensor:
    """Global ids of the k largest logits of all shards, [N, K]; one collective.

    The k largest are among each shard's own k largest. Ids travel as float64, exact up to 2^53, beside their logits.
    """
    best_2NK = torch.full((2, len(logits_NV), k), -torch.inf, dtype=torch.float64, device=logits_NV.device)
    mine = min(k, shard.width)
    if mine:
        best_2NK[0, :, :mine], local_Nk = logits_NV.topk(mine, dim=-1)
        best_2NK[1, :, :mine] = local_Nk + shard.start
    every = shard.gather(best_2NK.flatten(1)).unflatten(-1, (-1, k))
    values, ids = every[:, 0].transpose(0, 1).flatten(1), every[:, 1].transpose(0, 1).flatten(1)
    return ids.gather(-1, values.topk(k, dim=-1).indices).long()
