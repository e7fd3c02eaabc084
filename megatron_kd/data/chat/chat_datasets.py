"""The three splits of a configuration whose data is conversations, with blends of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets import helpers
from torch.utils.data import Dataset

from megatron_kd.config.blend import SplitData
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.chat_files import ChatFile, Part
from megatron_kd.data.chat.chat_rows import ChatRows, Rows, RowSettings, cached_rows
from megatron_kd.data.tokens.blend_files import checked_split, nothing_to_learn
from megatron_kd.errors import ConfigError


def chat_datasets(
    splits: Sequence[SplitData | None],
    samples: Sequence[int],
    settings: RowSettings,
    *,
    seed: int,
    pad_id: int,
    path_to_cache: str | None,
) -> list[Dataset | None]:
    """Rows of conversations, of each of the three splits as many as `samples` says; None where a split is None.

    A blend without weights is read as one file; with weights, in their proportion of rows, each file in an order and
    in epochs of its own. Every rank must call this.

    Raises:
        ConfigError: nothing to learn in the files of a split.
    """
    built: list[Dataset | None] = []
    for number, (data, count) in enumerate(zip(splits, samples, strict=True)):
        if data is None:
            built.append(None)
            continue
        datasets = [
            ChatRows(part, rows, settings, num_samples=count, seed=seed, split=number, pad_id=pad_id)
            for part, rows in _rows(data, settings, path_to_cache)
        ]
        weights = data.blend.weights or [1.0]
        built.append(BlendedRows(datasets, weights, count) if len(datasets) > 1 else datasets[0])
    return built


def training_rows(cfg: DatasetConfig, seq_length: int) -> int:
    """The rows of one epoch of the training split, of a blend all its files', whatever the weights.

    Every rank must call this.

    Raises:
        InputError: no data named, files missing or damaged, or nothing to learn in them.
    """
    settings = RowSettings.of(cfg, seq_length)
    return sum(len(rows.packs) for _, rows in _rows(checked_split(cfg, "train"), settings, cfg.path_to_cache))


class BlendedRows(Dataset):
    """Rows of several datasets, in the proportion of `weights` at every point of the way."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], num_samples: int) -> None:
        self.datasets = datasets
        self._which, self._index = np.zeros(num_samples, dtype=np.int16), np.zeros(num_samples, dtype=np.int64)
        shares = (np.array(weights) / sum(weights)).tolist()
        helpers.build_blending_indices(self._which, self._index, shares, len(datasets), num_samples, False)

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """See `ChatRows`."""
        return self.datasets[self._which[index]][int(self._index[index])]


def _rows(data: SplitData, settings: RowSettings, path_to_cache: str | None) -> list[tuple[Part, Rows]]:
    """The rows of each file of a weighted blend, or of all files together."""
    folder = Path(path_to_cache or f"{data.blend.prefixes[0]}.cache")
    found = []
    for together in data.blend.packed_together:
        files = [ChatFile(prefix) for prefix in together]
        spans = [tuple(round(edge * len(file.lengths)) for edge in data.part) for file in files]
        part = Part(files, [(first, last) for first, last in spans])
        names = ", ".join(together)
        rows = cached_rows(part, settings, folder, partial(_tell, f"{names}, {data.name}"))
        if not len(rows.packs):
            raise ConfigError([nothing_to_learn(data, together, len(part))])
        found.append((part, rows))
    return found


def _tell(what: str, text: str) -> None:
    print(f"{what}: {text}", flush=True)
