"""megatron-core's GPTDataset and its builder, with an index cache that survives kills and notices changed data."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from numpy.lib import format as numpy_format

from megatron_kd.checkpoints.saved_state import BY_EPOCH, TOGETHER
from megatron_kd.data.samples.epoch_order import build_indices
from megatron_kd.data.tokens.token_files import fingerprint
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import InputError
from megatron_kd.runtime.together import on_rank_0

_MADE_ANEW = "(the next start rebuilds it)"


@dataclass(frozen=True)
class DatasetTokenizer:
    """A tokenizer as megatron-core's datasets read it. `unique_identifiers` is part of the index cache's key."""

    vocab_size: int
    eod: int
    unique_identifiers: dict[str, str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, prefixes: Sequence[str]) -> DatasetTokenizer:
        """For data in the files at `prefixes`."""
        # megatron-core keys its cache by the path of the data alone. New data at the same path would be read
        # through the old index, so the data's fingerprint is added here, where it becomes part of the key.
        return cls(tokenizer.vocab_size, tokenizer.eos_id, {"data": fingerprint(prefixes)})


class CachedGPTDataset(GPTDataset):
    """megatron-core's GPTDataset, whose index cache is moved into place when whole: a kill leaves no half file.

    The cache is in `path_to_cache` or, where that is None, in the folder `PREFIX.cache` beside the data.
    """

    config: GPTDatasetConfig

    def _build_document_sample_shuffle_indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        folder = Path(self.config.path_to_cache or f"{self.dataset.path_prefix}.cache")
        builds = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        try:
            if builds and not (folder / f"{self._base()}-description.txt").is_file():
                self._build_cache(folder)
            for name in ("document", "sample", "shuffle"):
                _check_index(folder / f"{self._base()}-{name}_index.npy")
            return self._with_cache(folder)
        except OSError as error:
            raise InputError(
                f"the index cache cannot be kept in {str(folder)!r} ({error}): set dataset.path_to_cache to a folder "
                "that every rank can read and rank 0 can write"
            ) from error

    def _build_cache(self, folder: Path) -> None:
        with _placed_when_whole(folder) as building:
            self._with_cache(building)

    def _with_cache(self, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The document, sample and shuffle indices, read from `folder` or built there."""
        shared = self.config
        self.config = copy.copy(shared)
        self.config.path_to_cache = str(folder)
        try:
            return super()._build_document_sample_shuffle_indices()
        finally:
            self.config = shared

    def _base(self) -> str:
        return f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}"


class EpochOrderDataset(CachedGPTDataset):
    """Text in the order of `epoch_order`. megatron-core reads its indices from the cache, which they are put into."""

    def _build_cache(self, folder: Path) -> None:
        S, lengths = self.config.sequence_length, self.dataset.sequence_lengths
        indices = build_indices(self.indices, lengths, self.num_samples or 1, S, self.config.random_seed)
        with _placed_when_whole(folder) as building:
            for name, index in (
                ("document", indices.documents), ("sample", indices.samples), ("shuffle", indices.shuffle)
            ):  # fmt: skip
                np.save(building / f"{self._base()}-{name}_index.npy", index)
            (building / f"{self._base()}-description.txt").write_text(self.unique_description, encoding="utf-8")


# The datasets of text by the order that they have.
TEXT_DATASETS: dict[str, type[CachedGPTDataset]] = {BY_EPOCH: EpochOrderDataset, TOGETHER: CachedGPTDataset}


@contextmanager
def _placed_when_whole(folder: Path) -> Iterator[Path]:
    """A folder to write a cache into, whose files the end of the block moves to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as building:
        yield Path(building)
        # The description goes last: it says that the others are there.
        for path in sorted(Path(building).iterdir(), key=lambda path: path.suffix == ".txt"):
            os.replace(path, folder / path.name)


def _make(cls: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make a dataset for the cache that it leaves."""
    cls(*args)


def _check_index(path: Path) -> None:
    """Refuse a file other than a numeric array: megatron-core's `numpy.load` would unpickle it and run code from it.

    Raises:
        InputError: also if it is not a regular file, since reading one might block.
        OSError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        numpy_format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise InputError(
            f"the index cache {str(path)!r} is damaged ({error}): delete its folder {_MADE_ANEW}"
        ) from error


class DatasetBuilder(BlendedMegatronDatasetBuilder):
    """megatron-core's builder, keeping the index of a blend in memory (10 bytes a sample).

    megatron-core can cache that index only where torch.distributed is initialised, and a kill would leave half of it.
    """

    @staticmethod
    def build_generic_dataset(
        cls: Any,
        is_built_on_rank: Callable[[], bool],
        synchronize_ranks: bool,
        *args: Any,
    ) -> Any:
        """Build one dataset, on rank 0 first."""
        if cls is BlendedDataset:
            config = copy.copy(args[-1])
            config.path_to_cache = None
            args = (*args[:-1], config)
            logging.getLogger(BlendedDataset.__module__).setLevel(logging.ERROR)  # it warns of having no cache
        if synchronize_ranks and cls in TEXT_DATASETS.values() and torch.distributed.is_initialized():
            # All ranks then raise the error: in megatron-core, the others would wait for rank 0 at a barrier.
            on_rank_0(lambda: _make(cls, args))
            synchronize_ranks = False
        return BlendedMegatronDatasetBuilder.build_generic_dataset(cls, is_built_on_rank, synchronize_ranks, *args)

    def _build_megatron_datasets_parallel(
        self, prefixes: list[str], split: list[float], sizes_per_dataset: list[list[int]]
    ) -> list[list[Any]]:
        """The parts of a blend, a list for each split; all ranks tell what is wrong with one here, too."""

        def parts() -> list[list[Any]]:
            sizes = zip(prefixes, sizes_per_dataset, strict=True)
            return [self._build_megatron_dataset_splits(prefix, split, size, False) for prefix, size in sizes]

        if torch.distributed.is_initialized():
            on_rank_0(lambda: len(parts()))
        return [list(of_split) for of_split in zip(*parts(), strict=True)]
