"""The three splits of a configuration whose data is conversations, with blends of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets import helpers
from torch.utils.data import Dataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.chat_files import ChatFile, Part
from megatron_kd.data.chat.chat_rows import ChatRows, Rows, RowSettings, cached_rows
from megatron_kd.data.tokens.blend_files import SPLITS, Blend, no_data, parse_blend, split_matrix
from megatron_kd.errors import ConfigError, InputError


def chat_datasets(
    cfg: DatasetConfig,
    *,
    seq_length: int,
    samples: Sequence[int],
    seed: int,
    pad_id: int,
    path_to_cache: str | None = None,
) -> list[Dataset | None]:
    """Train, valid and test rows of conversations, as many of each as `samples` says; see `build_datasets`.

    A blend without weights is read as one file; with weights, in their proportion of rows, each file in an order and
    in epochs of its own.

    Raises:
        InputError: no data named, files missing or damaged, or nothing to learn in them.
    """
    settings = _settings(cfg, seq_length)
    built: list[Dataset | None] = []
    for split, count in enumerate(samples):
        if not count:
            built.append(None)
            continue
        blend = _blend(cfg, split)
        datasets = [
            ChatRows(part, rows, settings, num_samples=count, seed=seed, split=split, pad_id=pad_id)
            for part, rows in _rows(cfg, blend, split, settings, path_to_cache)
        ]
        built.append(BlendedRows(datasets, blend.weights or [1.0], count) if len(datasets) > 1 else datasets[0])
    return built


def training_rows(cfg: DatasetConfig, seq_length: int, path_to_cache: str | None = None) -> int:
    """The rows of one epoch of the training split, of a blend all its files', whatever the weights.

    Every rank must call this.

    Raises:
        InputError: see `chat_datasets`.
    """
    settings = _settings(cfg, seq_length)
    return sum(len(rows.packs) for _, rows in _rows(cfg, _blend(cfg, 0), 0, settings, path_to_cache))


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


def _settings(cfg: DatasetConfig, seq_length: int) -> RowSettings:
    return RowSettings(seq_length, packed=cfg.packed_sequence, drops_long=cfg.long_samples == "drop")


def _blend(cfg: DatasetConfig, split: int) -> Blend:
    if cfg.data_path is not None:
        return parse_blend("dataset.data_path", cfg.data_path, chat=True)
    path = (cfg.train_data_path, cfg.valid_data_path, cfg.test_data_path)[split]
    if path is None:
        raise InputError(no_data(SPLITS[split]))
    return parse_blend(f"dataset.{SPLITS[split]}_data_path", path, chat=True)


def _rows(
    cfg: DatasetConfig, blend: Blend, split: int, settings: RowSettings, path_to_cache: str | None
) -> list[tuple[Part, Rows]]:
    """The rows of each file of a weighted blend, or of all files together."""
    fractions = (split_matrix(cfg.split)[split] or (0.0, 0.0)) if cfg.data_path is not None else (0.0, 1.0)
    folder = Path(cfg.path_to_cache or path_to_cache or f"{blend.prefixes[0]}.cache")
    several = [replace(blend, prefixes=[prefix]) for prefix in blend.prefixes] if blend.weights else [blend]
    found = []
    for one in several:
        files = [ChatFile(prefix) for prefix in one.prefixes]
        spans = [tuple(round(edge * len(file.lengths)) for edge in fractions) for file in files]
        part = Part(files, [(first, last) for first, last in spans])
        names = ", ".join(one.prefixes)
        rows = cached_rows(part, settings, folder, partial(_tell, f"{names}, {SPLITS[split]}"))
        if not len(rows.packs):
            why = f"has nothing to learn for the {SPLITS[split]} split, of {len(part)} conversations"
            cure = "give more data, a greater model.seq_length or another dataset.split"
            raise ConfigError([f"{blend.field}: {names!r} {why}: {cure}"])
        found.append((part, rows))
    return found


def _tell(what: str, text: str) -> None:
    print(f"{what}: {text}", flush=True)
