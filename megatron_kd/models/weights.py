"""Random weights that depend on the seed alone: one seed is one model at any layout.

Each tensor is drawn whole, unsharded and unpadded, by a generator seeded with (seed, checkpoint key, layer), and every
rank keeps its slice, which the checkpoint's own sharding defines. Drawing only the slice would need a generator that
can skip ahead; a tensor is small beside a model, and is freed before the next is drawn.
"""

from __future__ import annotations

import hashlib
import math

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from megatron_kd.models.gpt import DistillableGPTModel

_RESIDUAL_PROJECTIONS = ("linear_proj.weight", "linear_fc2.weight")
_VOCABULARY = ("word_embeddings.weight", "output_layer.weight")


@torch.no_grad()
def randomise(model: DistillableGPTModel, *, seed: int, std: float, num_layers: int) -> None:
    """Draw every matrix of `model` from N(0, std), those that feed the residual stream from N(0, std / sqrt(2 L)).

    Biases and the rows of the padded vocabulary are 0, norms are 1.

    Args:
        model: this rank's part of the model, on any device and in any dtype.
        seed: equal on every rank.
        std: standard deviation of the matrices.
        num_layers: L, of the whole model.
    """
    for shard in local_shards(model):
        draw(shard, seed=seed, std=std, num_layers=num_layers, vocab_size=model.true_vocab_size)


def local_shards(model: DistillableGPTModel) -> list[ShardedTensor]:
    """The model's tensors as in a checkpoint, views of its parameters' memory, without those on "meta"."""
    state = model.sharded_state_dict()
    apply_factories(state)  # splits tensors that a checkpoint holds in parts, such as gate and up projection
    shards = (value for value in nested_values(state) if isinstance(value, ShardedTensor))
    return [shard for shard in shards if shard.data is not None and not shard.data.is_meta]


def draw(shard: ShardedTensor, *, seed: int, std: float, num_layers: int, vocab_size: int | None) -> None:
    """Fill one tensor by the rules of `randomise`."""
    assert shard.data is not None
    if shard.key.endswith("bias"):  # without initialisation, megatron-core leaves its memory unset
        shard.data.zero_()
    elif len(shard.local_shape) == 1:
        shard.data.fill_(1.0)
    else:
        residual = shard.key.endswith(_RESIDUAL_PROJECTIONS)
        scale = std / math.sqrt(2 * num_layers) if residual else std
        vocab = vocab_size if shard.key.endswith(_VOCABULARY) else None
        shard.data.copy_(_slice_of_global(shard, seed, scale, vocab))


def _slice_of_global(shard: ShardedTensor, seed: int, std: float, vocab_size: int | None) -> Tensor:
    """This rank's slice, of the shard's local shape, of the whole tensor.

    Padded rows are not drawn, so that the true rows do not depend on the padded width.
    """
    axes = shard.prepend_axis_num
    shape, offset = list(shard.global_shape[axes:]), shard.global_offset[axes:]
    generator = torch.Generator().manual_seed(_stream(seed, shard.key, shard.global_offset[:axes]))
    whole = torch.empty(shape)
    whole[:vocab_size].normal_(0.0, std, generator=generator)
    if vocab_size is not None:
        whole[vocab_size:] = 0
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shard.local_shape, strict=True))]


def _stream(seed: int, key: str, layer: tuple[int, ...]) -> int:
    """The seed of one tensor's generator, 63 bits of a hash: Python's `hash` of a text differs between processes."""
    digest = hashlib.sha256(f"{seed}/{key}/{layer}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
