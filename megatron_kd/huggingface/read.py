"""Reads Hugging Face weights into the memory of megatron-core's shards, each rank its own slices.

Any tensor-, pipeline- or placement-layout is a list of shards, and a shard is a few blocks of rows of files (see
`tensors`), so no rank ever holds a whole tensor. ModelOpt's importer fills a whole model, and supports neither
Mistral, nor a padded vocabulary, nor tied weights on the last of several pipeline stages.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.huggingface.folder import check_entries, read_entries
from megatron_kd.huggingface.safetensors_header import Entry
from megatron_kd.huggingface.tensors import Tensor as Source
from megatron_kd.huggingface.tensors import tensors_of
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.weights import local_shards
from megatron_kd.runtime.together import raised_together

_BLOCK_BYTES = 64 << 20  # read at a time, beside the memory that is filled


class HuggingFaceWeights:
    """The weights of a folder, to be written into shards.

    Args:
        provider: the model; its `hf_path` is the folder and its `vocab_size` is known.
        field: what errors call the folder's origin.
    """

    def __init__(self, provider: GPTModelProvider, field: str) -> None:
        assert provider.hf_path is not None
        self._provider, self._where = provider, f"{field}={provider.hf_path}"
        self._folder = Path(provider.hf_path)
        self._entries: dict[str, Entry] | None = None
        self._sources: dict[tuple[str, int | None], Source] = {}

    def write(self, shards: list[ShardedTensor]) -> None:
        """Give `shards` their values, converted to their dtypes. Every rank must call this, with any shards.

        Rows of a padded vocabulary become 0.

        Raises:
            InputError: files that are missing, incomplete or of another model; on every rank.
        """
        with raised_together():
            try:
                self._open()
                with Files() as files:
                    for shard in shards:
                        self._fill(shard, files)
            except ConfigError as error:
                raise InputError("\n".join(f"{self._where}: {problem}" for problem in error.lines)) from error
            except (OSError, SafetensorError) as error:
                raise InputError(f"{self._where}: cannot be read: {error}") from error

    def _open(self) -> None:
        if self._entries is not None:
            return
        entries = read_entries(self._folder)
        if problems := check_entries(entries, self._provider):
            raise ConfigError(problems)
        self._entries = entries
        self._sources = {(source.key, source.layer): source for source in tensors_of(self._provider)}

    @torch.no_grad()
    def _fill(self, shard: ShardedTensor, files: Files) -> None:
        assert self._entries is not None and shard.data is not None
        axes = shard.prepend_axis_num
        source = self._sources.get((shard.key, shard.global_offset[0] if axes else None))
        if source is None:
            raise ConfigError([f"the model has {shard.key}, which these families do not have"])
        _check_shape(shard, source)
        columns = tuple(
            slice(at, at + count)
            for at, count in zip(shard.global_offset[axes + 1 :], shard.local_shape[1:], strict=True)
        )
        files.copy_rows(shard.data, shard.global_offset[axes], source, self._entries, columns)


def load_huggingface(chunks: list[DistillableGPTModel], provider: GPTModelProvider, field: str) -> None:
    """Load a folder's weights into this rank's chunks of a model, each rank its own shards.

    Args:
        chunks: this rank's part.
        provider: what they were built from; its `hf_path` is the folder.
        field: what errors call the folder's origin.

    Raises:
        InputError: as `HuggingFaceWeights.write`.
    """
    HuggingFaceWeights(provider, field).write([shard for chunk in chunks for shard in local_shards(chunk)])


class Files:
    """Safetensors files, each opened once and mapped into memory; closed when the block is left."""

    def __enter__(self) -> Files:
        self._stack, self._open = ExitStack(), dict[Path, Any]()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def copy_rows(
        self, target: Tensor, first: int, source: Source, entries: dict[str, Entry], columns: tuple[slice, ...] = ()
    ) -> None:
        """Fill `target` with rows of megatron-core's tensor `source` from `first` on; beyond its last, with 0.

        Args:
            target: [R, C], or [R] of a vector.
            first: in `source`.
            source: what it is made of.
            entries: of the folder.
            columns: those wanted; empty for all.
        """
        last = first + len(target)
        for block in source.blocks:
            start, end = max(first, block.at), min(last, block.at + block.rows)
            if start < end:
                rows = self._slices(entries[block.name].file, block.name)
                _copy_rows(target[start - first : end - first], rows, start - block.at + block.start, columns)
        target[max(0, source.shape[0] - first) :] = 0

    def _slices(self, file: Path, name: str) -> Any:
        """The object to index for a part of the tensor `name`."""
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt", device="cpu"))
        return self._open[file].get_slice(name)


def _copy_rows(target: Tensor, tensor: Any, start: int, columns: tuple[slice, ...]) -> None:
    """Copy `len(target)` rows of a file's tensor from `start` on, block by block."""
    row_bytes = target[:1].numel() * 4
    step = max(1, _BLOCK_BYTES // max(row_bytes, 1))
    for at in range(0, len(target), step):
        rows = slice(start + at, start + min(at + step, len(target)))
        target[at : at + step].copy_(tensor[(rows, *columns)])


def _check_shape(shard: ShardedTensor, source: Source) -> None:
    have, want = tuple(shard.global_shape[shard.prepend_axis_num :]), source.shape
    # The built vocabulary is padded, the file's is not.
    if have[1:] != want[1:] or (have[0] < want[0] if shard.allow_shape_mismatch else have[0] != want[0]):
        raise ConfigError([f"{shard.key} has shape {want} by config.json, the model needs {have}"])
