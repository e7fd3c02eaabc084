"""The teacher's output head, where the student's losses are: sharded over the vocabulary like the student's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_kd.runtime.layout import Layout


@dataclass(frozen=True)
class TeacherHead:
    """This rank's rows of the head.

    Attributes:
        weight: [V, G], sharded over V by the student's tensor parallelism.
        true_vocab_size: the teacher's number of token ids; rows at and above it are padding.
        layout: the student's.
        sequence_parallel: whether hidden states come as this rank's part of the sequence.
    """

    weight: Tensor
    true_vocab_size: int
    layout: Layout
    sequence_parallel: bool

    def logits(self, hidden_SBG: Tensor) -> Tensor:
        """[S, B, V], sharded over V, of the whole sequence."""
        if self.sequence_parallel:
            hidden_SBG = gather_from_sequence_parallel_region(hidden_SBG, group=self.layout.tp.group)
        return hidden_SBG.to(self.weight.dtype) @ self.weight.t()


def head_shard(weight: Tensor, layout: Layout, *, tied: bool) -> ShardedTensor:
    """`weight` as a shard of the head that a checkpoint holds; of its embedding where the two are one."""
    key = "embedding.word_embeddings.weight" if tied else "output_layer.weight"
    return ShardedTensor.from_rank_offsets(
        key,
        weight,
        (0, layout.tp.rank, layout.tp.size),
        replica_id=(0, 0, layout.dp.rank),
        allow_shape_mismatch=True,  # the checkpoint's width may be padded otherwise
    )


def empty_head(width: int, hidden_size: int, dtype: torch.dtype, layout: Layout) -> Tensor:
    """Room for this rank's rows of a head of `width` rows in all."""
    return torch.empty(width // layout.tp.size, hidden_size, dtype=dtype, device=layout.device)
