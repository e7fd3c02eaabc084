"""`model.init=from_teacher`: a student that starts as its teacher with some of the layers left out.

A student's shard is the teacher's of the same name, in another layer. So what reads a teacher's weights, from wherever
they come, reads the student's too, each rank its own shards, at any layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.weights import local_shards
from megatron_kd.teachers.fill import writer


@torch.no_grad()
def load_from_teacher(chunks: list[DistillableGPTModel], cfg: ConfigContainer, derived: Derived) -> None:
    """Give this rank's chunks of the student the teacher's weights, by the rule of `spaced_layers`.

    Every rank must call this. Embeddings, final norm and head are the teacher's whole.

    Raises:
        InputError: weights that cannot be read, or belong to another model than `model.teacher`; on every rank.
    """
    teacher = cfg.models.teacher
    assert teacher is not None and derived.teacher_vocab_size is not None  # `checks` refuse the run
    layers = teacher.num_layers
    kept = spaced_layers(cfg.model.num_layers, layers)
    write = writer(cfg, teacher, derived.teacher_vocab_size)
    write([_of_teacher(shard, kept, layers) for chunk in chunks for shard in local_shards(chunk)])


def spaced_layers(count: int, of: int) -> list[int]:
    """`count` of the layers 0 to `of` - 1, ascending: the first, the last, and those between at even distances.

    Layer i of the student is layer round(i (of - 1) / (count - 1)) of the teacher, halves rounded up. For 6 of 12 these
    are 0, 2, 4, 7, 9 and 11, which DistilBERT starts from. A single layer is the first.

    Args:
        count: from 1 to `of`.
        of: the teacher's number of layers.
    """
    steps = count - 1
    return [(2 * layer * (of - 1) + steps) // (2 * steps) for layer in range(count)] if steps else [0]


def _of_teacher(shard: ShardedTensor, kept: Sequence[int], layers: int) -> ShardedTensor:
    """The teacher's shard that belongs into the memory of `shard`; `layers` are the teacher's."""
    if not shard.prepend_axis_num:  # no layer's
        return shard
    first, *fragments = shard.axis_fragmentations
    assert first == shard.global_shape[0] == len(kept), "the first axis of a layer's tensor counts layers"
    return replace(
        shard,
        global_shape=(layers, *shard.global_shape[1:]),
        global_offset=(kept[shard.global_offset[0]], *shard.global_offset[1:]),
        axis_fragmentations=(layers, *fragments),
    )
