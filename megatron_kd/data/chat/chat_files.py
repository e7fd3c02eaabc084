"""Tokenised conversations on disk: `.bin/.idx` as of any text, and `.loss_mask.bin`, a byte for each token in `.bin`.

A conversation of n tokens is a sample of n - 1: each token but the last is read, each but the first is a label.
S sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megatron_kd.config.text_files import LOSS_MASK


@dataclass(frozen=True)
class Sample:
    """Tokens, labels (int64) and loss mask (bool) of one conversation, all of one length."""

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray


class ChatFile:
    """The conversations at one prefix. Only what is asked for is read."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __reduce__(self) -> tuple[type[ChatFile], tuple[str]]:
        return ChatFile, (self.prefix,)  # maps are not sent to worker processes, but opened there

    @cached_property
    def _data(self) -> IndexedDataset:
        return IndexedDataset(self.prefix)

    @cached_property
    def _mask(self) -> np.ndarray:
        return np.memmap(f"{self.prefix}{LOSS_MASK}", dtype=np.uint8, mode="r")

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each conversation."""
        return self._data.sequence_lengths.copy()

    def sample(self, index: int, longest: int) -> Sample:
        """One conversation, cut after `longest` tokens of a sample."""
        length = min(int(self._data.sequence_lengths[index]), longest + 1)
        ids = self._data.get(index, length=length).astype(np.int64)
        first = int(self._data.index.sequence_pointers[index]) // self._token_bytes
        return Sample(ids[:-1], ids[1:], self._mask[first + 1 : first + length].astype(bool))

    def learnt(self, first: int, last: int, longest: int) -> np.ndarray:
        """Whether each conversation from `first` to below `last` has a label to learn within `longest` tokens."""
        starts = self._data.index.sequence_pointers[first:last] // self._token_bytes
        lengths = self._data.sequence_lengths[first:last]
        found = np.zeros(last - first, dtype=bool)
        for index, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            found[index] = self._mask[start + 1 : start + min(length, longest + 1)].any()
        return found

    @property
    def _token_bytes(self) -> int:
        return DType.size(self._data.index.dtype)


@dataclass(frozen=True)
class Part:
    """The conversations of several files, each from one of its own to below another, numbered through from 0."""

    files: Sequence[ChatFile]
    spans: Sequence[tuple[int, int]]

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.cumsum([0, *(last - first for first, last in self.spans)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each sample: of its conversation, less one."""
        pairs = zip(self.files, self.spans, strict=True)
        return np.concatenate([file.lengths[first:last] for file, (first, last) in pairs]) - 1

    def learnt(self, longest: int) -> np.ndarray:
        """See `ChatFile`."""
        pairs = zip(self.files, self.spans, strict=True)
        return np.concatenate([file.learnt(first, last, longest) for file, (first, last) in pairs])

    def sample(self, index: int, longest: int) -> Sample:
        """See `ChatFile`."""
        file = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.files[file].sample(self.spans[file][0] + index - int(self._firsts[file]), longest)
