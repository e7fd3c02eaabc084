"""A checkpoint's tensors read and written by one process, a part at a time: no ranks, no model, little memory.

Parts are in the checkpoint's own coordinates, in which what all layers have is one tensor whose first axis counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_kd.checkpoints.pickles import reason
from megatron_kd.checkpoints.reading import Verified
from megatron_kd.checkpoints.shards import Bucket, Plan
from megatron_kd.errors import CheckpointCorrupt

Place = tuple[int, ...]

_FILE_BYTES = 4 << 30


class CheckpointReader:
    """The tensors of a checkpoint.

    Attributes:
        shapes: of every tensor, unsharded, by key.
    """

    def __init__(self, checkpoint: Verified) -> None:
        self._folder = checkpoint.folder
        self._reader = dcp.FileSystemReader(checkpoint.folder)
        self._reader.set_up_storage_reader(checkpoint.metadata, is_coordinator=True)
        saved = checkpoint.metadata.state_dict_metadata
        self._tensors = {key: value for key, value in saved.items() if isinstance(value, TensorStorageMetadata)}
        self.shapes = {key: tuple(value.size) for key, value in self._tensors.items()}

    def read(self, key: str, offset: Place, sizes: Place) -> Tensor:
        """The part of `sizes` from `offset` on, in the dtype it was saved in.

        Raises:
            CheckpointCorrupt: the file does not hold such a tensor.
        """
        saved = self._tensors[key]
        target = torch.empty(sizes, dtype=saved.properties.dtype)
        part = ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(sizes))
        plan = LoadPlan(create_read_items_for_chunk_list(key, saved, [part]))
        try:
            self._reader.read_data(plan, _Into(target)).wait()
        except Exception as error:  # a damaged file raises anything
            raise CheckpointCorrupt(f"{self._folder}: {key} cannot be read: {reason(error)}") from error
        return target


class _Into(dcp.DefaultLoadPlanner):
    """Has what is read written into one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing to do: it is a view of the target."""


@dataclass(frozen=True)
class Part:
    """A part of a tensor that is to be written, whose values are asked for when its turn comes."""

    key: str
    shape: Place  # of the whole tensor
    offset: Place
    sizes: Place
    dtype: torch.dtype
    values: Callable[[], Tensor]  # of `sizes`

    def contiguous(self) -> Tensor:
        """The values, in an order that can be written."""
        return self.values().contiguous()


def plan_parts(parts: Sequence[Part], folder: Path) -> Plan:
    """Plan a checkpoint of the tensors that `parts` make up, for one process, which has one part in memory at a time.

    Args:
        parts: must cover each of their tensors once.
        folder: to write into.
    """
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    _, metadata = planner.create_global_plan([SavePlan([_write_item(part) for part in parts])])
    buckets: list[Bucket] = []
    for index, group in enumerate(_groups(parts)):
        name = f"__0_{index}.distcp"
        buckets.append((str(folder / name), name, ([], [(_write_item(part), part.contiguous) for part in group])))
    return Plan({}, metadata, buckets)


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts of one file: several files are hashed by several ranks."""
    group: list[Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += math.prod(part.sizes) * part.dtype.itemsize
        if size > _FILE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _index(part: Part) -> MetadataIndex:
    return MetadataIndex(part.key, torch.Size(part.offset))


def _write_item(part: Part) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=torch.Size(part.offset), sizes=torch.Size(part.sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=part.dtype), torch.Size(part.shape))
    return WriteItem(_index(part), WriteItemType.SHARD, tensor_data=data)
