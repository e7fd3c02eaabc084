"""Which vocabulary ids a rank holds, and the two collectives that the losses need.

Rank r of a tensor-parallel group holds the global ids [r * slots, (r + 1) * slots) as the last dimension of its
logits. Ids at or above the true vocabulary size are padding: they are sliced off and never read, so that a padded slot
has probability zero and gradient zero whatever its logit is. (Masking them with -inf would read them, and make NaN of
a shard that has nothing else.)

Shapes: N tokens, V vocabulary (the logical size, also on a shard), R ranks, K statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import InputError


class Sharding(TypedDict, total=False):
    """The keyword arguments of all losses of materialised logits, [..., V/tp], that say how ranks share them.

    Attributes:
        group: the tensor-parallel group that shards the vocabulary; None when this rank holds all of it.
        vocab_size: the true vocabulary size over all ranks. Slots at or above it are padding: probability zero,
            gradient zero, never picked. Where the vocabularies of teacher and student differ, the number of ids they
            share. None: there is no padding.
        chunk_tokens: tokens worked on at a time; None: what fits the cache (CPU) or fills the device (GPU).
    """

    group: dist.ProcessGroup | None
    vocab_size: int | None
    chunk_tokens: int | None


@dataclass(frozen=True)
class VocabShard:
    """This rank's share of the vocabulary.

    Attributes:
        group: the tensor-parallel group, None when the vocabulary is not sharded.
        rank: this rank's place in the group.
        world: number of ranks in the group.
        start: global id of this rank's first slot.
        width: number of slots that hold true ids; the remaining slots are padding. May be 0.
        widest: the largest `width` of any rank. Sizes of chunks follow from it and not from `width`: ranks meet in a
            collective after each chunk, so all must cut the tokens alike.
        vocab_size: number of true ids over all ranks.
    """

    group: dist.ProcessGroup | None
    rank: int
    world: int
    start: int
    width: int
    widest: int
    vocab_size: int

    @classmethod
    def of(cls, slots: int, group: dist.ProcessGroup | None = None, vocab_size: int | None = None) -> VocabShard:
        """The shard of a rank that holds `slots` vocabulary slots, padding included.

        Raises:
            InputError: if `vocab_size` is not in [1, slots * ranks].
        """
        world = dist.get_world_size(group) if group is not None else 1
        rank = dist.get_rank(group) if group is not None else 0
        if vocab_size is None:
            vocab_size = slots * world
        if not 1 <= vocab_size <= slots * world:
            raise InputError(
                f"vocab_size={vocab_size} does not fit {world} shards of {slots} slots; "
                f"give the true vocabulary size, between 1 and {slots * world}"
            )
        start = rank * slots
        width = min(max(vocab_size - start, 0), slots)
        return cls(group, rank, world, start, width, min(vocab_size, slots), vocab_size)

    def find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """This shard's slots of global ids, and whether it holds them; both have the shape of `ids`.

        The slot of an id that another shard holds is some slot, so that it can be gathered and left out.
        """
        local = ids - self.start
        return local.clamp(0, self.width - 1), (local >= 0) & (local < self.width)

    def pick(self, logits_NV: Tensor, id_N: Tensor) -> Tensor:
        """The logit at one id for each token (0 where another shard holds it), and whether it is here; float64 [2, N].

        Over all shards both add up: to the logit, and to 1 if the id is in the vocabulary.
        """
        picked_2N = torch.zeros(2, len(logits_NV), dtype=torch.float64, device=logits_NV.device)
        if self.width:  # a shard of padding only has no slot to gather from
            slot_N, here_N = self.find(id_N)
            picked_2N[0] = torch.where(here_N, logits_NV.gather(-1, slot_N[:, None]).squeeze(-1), 0.0)
            picked_2N[1] = here_N
        return picked_2N

    def gather(self, stats_KN: Tensor) -> Tensor:
        """Every rank's statistics [K, N], as [R, K, N]: one collective, none when the vocabulary is not sharded."""
        if self.world == 1:
            return stats_KN[None]
        out_RKN = stats_KN.new_empty((self.world, *stats_KN.shape))
        dist.all_gather_into_tensor(out_RKN.view(-1, *stats_KN.shape[1:]), stats_KN.contiguous(), group=self.group)
        return out_RKN

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place, of any shape: one collective, none when the vocabulary is not sharded."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float32 arithmetic for every training dtype; float64 stays float64, so that `gradcheck` works."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_one_shape(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Check that the shards of both models' logits can be compared slot by slot.

    Raises:
        InputError: the shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} must have "
            "one shape, or a rank's shards hold different ids: pad both heads to one width, and give the number of "
            "shared ids as vocab_size"
        )
