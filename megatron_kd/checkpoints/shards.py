"""megatron-core's sharded save, in parts: what is planned by all ranks together, and what each writes by itself.

megatron-core's own save writes from child processes, and ranks write between collectives: a rank that cannot write
would leave the others waiting.
"""

from __future__ import annotations

import math
import pickle
import queue
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from megatron_kd.checkpoints.pickles import COMMON, METADATA
from megatron_kd.runtime.files import FileRecord, write_file

BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
COMMON_BACKEND = {"common_backend": "torch", "common_backend_version": 1}
_HEADER = 2048  # bytes that torch adds to a tensor, about

# Path and name of a file, its objects and its tensors, each with what it is. A tensor may be a function that makes it.
Bucket = tuple[str, str, tuple[list[Any], list[Any]]]


@dataclass
class Plan:
    """The planned content of a checkpoint's files.

    Attributes:
        common: what all ranks share; rank 0 writes it.
        metadata: what is where; on rank 0, complete once all ranks have written.
        buckets: this rank's files.
    """

    common: dict[str, Any]
    metadata: Metadata | None
    buckets: list[Bucket]

    @property
    def size(self) -> int:
        """About how many bytes this rank will write."""
        return sum(
            sum(data.getbuffer().nbytes for _, data in objects) + sum(_bytes_of(item) for item, _ in tensors)
            for _, _, (objects, tensors) in self.buckets
        )


@dataclass(frozen=True)
class Shards:
    """A rank's written part: the place of each of its tensors, and its files."""

    results: list[WriteResult]
    files: dict[str, FileRecord]


class _Strategy(TorchDistSaveShardedStrategy):
    """megatron-core's plan of a save; the writing is ours."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, planned: Any
    ) -> tuple[FileSystemWriterAsync, Metadata | None]:
        return writer, planned[1]


def plan_shards(state: dict[str, Any], folder: Path) -> Plan:
    """Agree on which rank writes what. Every rank must call this; nothing is written."""
    # The writer asks for a queue to other processes, which megatron-core would start another process for.
    filesystem_async._results_queue = queue.Queue()
    sharded, common = save_preprocess(state)
    writer, metadata = _Strategy("torch_dist", 1, thread_count=1).async_save(sharded, folder)
    if metadata is not None:
        del metadata.all_local_plans  # would speed up planning the next save, and is larger than all else
        metadata.storage_meta = writer.storage_meta()
    return Plan(common, metadata, writer.write_buckets or [])


def staged(plan: Plan) -> Plan:
    """A plan whose tensors are copies in host memory, which training on does not change."""
    buckets = [
        (path, name, (objects, [(item, tensor.to("cpu", copy=True)) for item, tensor in tensors]))
        for path, name, (objects, tensors) in plan.buckets
    ]
    return Plan(plan.common, plan.metadata, buckets)


def write_shards(plan: Plan) -> Shards:
    """Write this rank's files, and wait until they are on the disk. Talks to no other rank.

    Raises:
        OSError: the disk's own.
    """
    written = Shards([], {})
    for path, name, content in plan.buckets:
        results, written.files[name] = write_file(Path(path), partial(_fill, name, content))
        written.results.extend(results)
    return written


def write_index(plan: Plan, shards: list[Shards], folder: Path) -> dict[str, FileRecord]:
    """On rank 0: write what says where the tensors are, and what all ranks share.

    Args:
        shards: what each rank has written.

    Returns:
        The records of all files of the checkpoint so far, by name.
    """
    metadata = plan.metadata
    assert metadata is not None, "rank 0 plans"
    metadata.storage_data = {result.index: result.storage_data for part in shards for result in part.results}
    files = {name: record for part in shards for name, record in part.files.items()}
    files[METADATA] = write_file(folder / METADATA, lambda file: pickle.dump(metadata, file))[1]
    files[COMMON] = write_file(folder / COMMON, lambda file: torch.save(plan.common, file))[1]
    return files


def _fill(name: str, content: tuple[list[Any], list[Any]], file: BinaryIO) -> list[WriteResult]:
    objects, tensors = content
    transforms, form = _StorageWriterTransforms(), SerializationFormat.TORCH_SAVE
    results = [_write_item(transforms, file, data, item, name, form) for item, data in objects]
    for item, tensor in tensors:
        values = tensor() if callable(tensor) else tensor
        results.append(_write_item(transforms, file, values.cpu(), item, name, form))
    return results


def _bytes_of(item: Any) -> int:
    data = item.tensor_data
    return math.prod(data.chunk.sizes) * int(data.properties.dtype.itemsize) + _HEADER
