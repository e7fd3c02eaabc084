"""Which token each model would pick, and where the student ranks the teacher's, under vocabulary parallelism.

The models agree on a token at k if the teacher's first choice is among the student's k first: the top-k accuracy of the
field with the teacher's choice as the label (at k = 1 the agreement of Stanton et al. 2021). Its rank says so for every
k at once.

Shapes: N tokens, V vocabulary (the logical size, also on a shard), R ranks.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from megatron_kd.errors import InputError
from megatron_kd.losses.shard import Sharding, VocabShard, require_one_shape
from megatron_kd.losses.sizes import tile_rows
from megatron_kd.losses.tiles import Tiling, tiles


def local_argmax(logits_NV: Tensor, shard: VocabShard) -> Tensor:
    """This shard's largest logit and its global id, [2, N] of float64, which holds ids up to 2^53 exactly.

    `logits_NV` holds true slots only. A shard without any gives -inf and the id one past the vocabulary.
    """
    best_2N = torch.empty(2, len(logits_NV), dtype=torch.float64, device=logits_NV.device)
    if shard.width == 0:
        best_2N[0], best_2N[1] = -torch.inf, shard.vocab_size
        return best_2N
    best_N1 = logits_NV.argmax(-1, keepdim=True)  # the first of equal maxima, as torch.max does not promise
    best_2N[0] = logits_NV.gather(-1, best_N1).squeeze(-1)
    best_2N[1] = best_N1.squeeze(-1) + shard.start
    return best_2N


def combine_argmax(best_R2N: Tensor) -> Tensor:
    """Global ids [N] from every shard's `local_argmax`; among equal logits the smallest id."""
    value_RN, id_RN = best_R2N[:, 0], best_R2N[:, 1]
    return torch.where(value_RN == value_RN.amax(0), id_RN, torch.inf).amin(0).long()


def vocab_parallel_argmax(logits: Tensor, **sharding: Unpack[Sharding]) -> Tensor:
    """The global id of each token's largest logit; one collective.

    Args:
        logits: [..., V/tp], this rank's shard.
        sharding: see `Sharding`.

    Returns:
        [...] of int64, the same on every rank and at every TP size: ties go to the smallest id.

    Raises:
        InputError: if `vocab_size` does not fit the shards.
    """
    shard = Tiling.of(logits, **sharding).shard
    logits_NV = logits.detach().reshape(-1, logits.shape[-1])[:, : shard.width]
    return combine_argmax(shard.gather(local_argmax(logits_NV, shard))).view(logits.shape[:-1])


def vocab_parallel_choice_rank(student_logits: Tensor, teacher_logits: Tensor, **sharding: Unpack[Sharding]) -> Tensor:
    """How many ids the student puts before the teacher's first choice, for each token; three collectives.

    Args:
        student_logits: [..., V/tp], this rank's shard.
        teacher_logits: the same shape.
        sharding: see `Sharding`.

    Returns:
        [...] of int64, the same on every rank; below k where the models agree at k. Ties go to the smaller id.

    Raises:
        InputError: if the shapes differ.
    """
    require_one_shape(student_logits, teacher_logits)
    shard = Tiling.of(student_logits, **sharding).shard
    student_NV = student_logits.detach().reshape(-1, student_logits.shape[-1])[:, : shard.width]
    target_N = vocab_parallel_argmax(teacher_logits, **sharding).view(-1)
    return rank_of(student_NV, target_N, shard).view(student_logits.shape[:-1])


def vocab_parallel_topk_agreement(
    student_logits: Tensor, teacher_logits: Tensor, *, k: int = 1, **sharding: Unpack[Sharding]
) -> Tensor:
    """Whether the teacher's first choice is among the student's k first choices, [...] of bool.

    Arguments as in `vocab_parallel_choice_rank`.

    Raises:
        InputError: if the shapes differ, or k is not positive.
    """
    if k < 1:
        raise InputError(f"k={k} must be at least 1")
    return vocab_parallel_choice_rank(student_logits, teacher_logits, **sharding).lt(k)


def rank_of(logits_NV: Tensor, id_N: Tensor, shard: VocabShard) -> Tensor:
    """How many ids come before `id_N` in the order of falling logits, then rising ids, [N]; two collectives.

    Args:
        logits_NV: this shard's true slots, [N, shard.width].
        id_N: a global id for each token.
        shard: this rank's.
    """
    at_id_N1 = shard.sum_(shard.pick(logits_NV, id_N)[0])[:, None].to(logits_NV.dtype)
    ids_V = torch.arange(shard.width, device=logits_NV.device) + shard.start
    before_N = torch.zeros_like(id_N)
    for rows in tiles(len(logits_NV), tile_rows(shard.widest, logits_NV.device.type)):
        tile_CV, at_id_C1 = logits_NV[rows], at_id_N1[rows]
        ahead_CV = (tile_CV > at_id_C1) | ((tile_CV == at_id_C1) & (ids_V < id_N[rows, None]))
        before_N[rows] = ahead_CV.sum(-1)
    return shard.sum_(before_N)
