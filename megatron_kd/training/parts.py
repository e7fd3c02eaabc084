"""A checkpoint's tensors read and written by one process, a part at a time: no ranks, no model, little memory.

Parts are in the checkpoint's own coordinates, in which what all layers have is one tensor whose first axis counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
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

Place = tuple[int, ...]


class CheckpointReader:
    """The tensors of a checkpoint.

    Attributes:
        shapes: of every tensor, unsharded, by key.
    """

    def __init__(self, folder: Path) -> None:
        self._reader = dcp.FileSystemReader(folder)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        saved = metadata.state_dict_metadata
        self._tensors = {key: value for key, value in saved.items() if isinstance(value, TensorStorageMetadata)}
        self.shapes = {key: tuple(value.size) for key, value in self._tensors.items()}

    def read(self, key: str, offset: Place, sizes: Place) -> Tensor:
        """The part of `sizes` from `offset` on, in the dtype it was saved in."""
        saved = self._tensors[key]
        target = torch.empty(sizes, dtype=saved.properties.dtype)
        part = ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(sizes))
        plan = LoadPlan(create_read_items_for_chunk_list(key, saved, [part]))
        self._reader.read_data(plan, _Into(target)).wait()
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


def write_parts(parts: Sequence[Part], common: dict[str, Any], folder: Path) -> None:
    """Write the tensors that `parts` make up, and the state `common`, as megatron-core would. One process calls this.

    Args:
        parts: must cover each of their tensors once.
        common: plain values.
        folder: must be there, and empty.
    """
    dcp.save({}, storage_writer=dcp.FileSystemWriter(folder), planner=_PartsPlanner(parts), no_dist=True)
    torch.save(common, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _PartsPlanner(dcp.DefaultSavePlanner):
    """Writes parts one after the other, so that one is in memory at a time."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__(flatten_state_dict=False)
        self._parts = {_index(part): part for part in parts}

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(part) for part in self._parts.values()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._parts[write_item.index].values().contiguous()


def _index(part: Part) -> MetadataIndex:
    return MetadataIndex(part.key, torch.Size(part.offset))


def _write_item(part: Part) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=torch.Size(part.offset), sizes=torch.Size(part.sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=part.dtype), torch.Size(part.shape))
    return WriteItem(_index(part), WriteItemType.SHARD, tensor_data=data)
