"""Conversations as rows of S tokens: which samples are kept, which share a row, and the tensors of a row.

The rows of a part of the data are worked out once, by the first rank, and kept in a folder beside the data. Row i of a
run is a function of the seed and of i: each epoch reads every row once, in an order of its own.

S sequence length.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.lib import format as numpy_format
from torch.utils.data import Dataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.data.chat.chat_files import Part
from megatron_kd.data.chat.packed_rows import Packs, best_fit, one_a_row
from megatron_kd.data.tokens.token_files import fingerprint
from megatron_kd.errors import InputError
from megatron_kd.runtime.together import on_rank_0

_FORMAT = 1  # to be raised when the same conversations would give other rows


@dataclass(frozen=True)
class RowSettings:
    """How conversations become rows.

    Attributes:
        seq_length: S.
        packed: whether conversations share rows.
        drops_long: whether a conversation of more than S tokens is left out rather than cut.
    """

    seq_length: int
    packed: bool
    drops_long: bool

    @classmethod
    def of(cls, cfg: DatasetConfig, seq_length: int) -> RowSettings:
        """As configured."""
        return cls(seq_length, packed=cfg.packed_sequence, drops_long=cfg.long_samples == "drop")


@dataclass(frozen=True)
class RowCounts:
    """Counts of the conversations in a part of the data, by outcome, and of the rows they fill."""

    conversations: int
    rows: int
    tokens: int  # in rows, padding left out
    truncated: int
    dropped: int
    nothing_learnt: int  # left out since no label within S is the assistant's

    def shown(self, seq_length: int) -> str:
        """In words."""
        kept = self.conversations - self.dropped - self.nothing_learnt
        text = f"{kept:,} conversations in {self.rows:,} rows of {seq_length:,} tokens"
        text += f", {self.tokens / max(self.rows * seq_length, 1):.1%} of them filled"
        text += f"; {self.truncated:,} cut to that length" if self.truncated else ""
        text += f"; {self.dropped:,} longer ones dropped" if self.dropped else ""
        return text + (f"; {self.nothing_learnt:,} left out, nothing to learn in reach" if self.nothing_learnt else "")


@dataclass(frozen=True)
class Rows:
    """`packs` of samples, by their numbers in a part of the data."""

    packs: Packs
    counts: RowCounts


def make_rows(part: Part, settings: RowSettings) -> Rows:
    """Work out the rows of a part of the data."""
    lengths, longest = part.lengths, settings.seq_length
    long = lengths > longest
    learnt = (lengths > 0) & part.learnt(longest)
    dropped = long if settings.drops_long else np.zeros_like(long)
    kept = np.flatnonzero(learnt & ~dropped)
    clipped = np.minimum(lengths[kept], longest)
    packs = best_fit(clipped, longest) if settings.packed else one_a_row(len(kept))
    counts = RowCounts(
        conversations=len(part),
        rows=len(packs),
        tokens=int(clipped.sum(dtype=np.int64)),
        truncated=int(long[kept].sum()),
        dropped=int(dropped.sum()),
        nothing_learnt=int((~learnt & ~dropped).sum()),
    )
    return Rows(Packs(kept[packs.samples], packs.starts), counts)


def cached_rows(part: Part, settings: RowSettings, folder: Path, say: Callable[[str], None]) -> Rows:
    """The rows of a part of the data, from `folder` or worked out into it. Every rank must call this.

    The first rank reports the counts of conversations through `say`.

    Raises:
        InputError: a folder that cannot be written, on every rank.
    """

    def build() -> str:
        try:
            place = folder / f"rows-{_key(part, settings)}"
            if not place.is_dir():
                _write(make_rows(part, settings), place)
            say(_read(place).counts.shown(settings.seq_length))
        except (ValueError, TypeError) as error:
            raise InputError(f"the rows in {str(place)!r} are damaged ({error}): delete that folder") from error
        except OSError as error:
            why = f"the rows of conversations cannot be kept in {str(folder)!r} ({error}): set dataset.path_to_cache"
            raise InputError(f"{why} to a folder that every rank can read and rank 0 can write") from error
        return str(place)

    return _read(Path(on_rank_0(build) if dist.is_initialized() else build()))


def _key(part: Part, settings: RowSettings) -> str:
    """Changes when the data or the settings do."""
    # A mask may change where no length does, and is too long to be read through.
    masks = [os.stat(f"{file.prefix}{LOSS_MASK}") for file in part.files]
    made_of = [_FORMAT, fingerprint([file.prefix for file in part.files]), part.spans, asdict(settings)]
    return hashlib.sha256(json.dumps([*made_of, [mask.st_mtime_ns for mask in masks]]).encode()).hexdigest()[:32]


class ChatRows(Dataset):
    """Rows of conversations, `num_samples` of them, in as many epochs as that takes.

    Args:
        rows: of `part`, at least one.
        settings: those that the rows were made with.
        seed: of the order.
        split: 0 to 2; each has an order of its own.
        pad_id: what fills a row up.
    """

    def __init__(
        self, part: Part, rows: Rows, settings: RowSettings, *, num_samples: int, seed: int, split: int, pad_id: int
    ) -> None:
        self.part, self.rows, self.settings = part, rows, settings
        self.num_samples, self.seed, self.split, self.pad_id = num_samples, seed, split, pad_id

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Tokens, labels, loss_mask and position_ids, each [S].

        Positions count from 0 in each sample of a packed row, and again in the padding at its end, so they tell where
        samples begin.
        """
        epoch, place = divmod(index, len(self.rows.packs))
        order = _order(self.seed, self.split, epoch, len(self.rows.packs))
        return self._row(self.rows.packs.row(int(order[place])))

    def _row(self, samples: np.ndarray) -> dict[str, torch.Tensor]:
        S = self.settings.seq_length
        tokens, labels = (np.full(S, self.pad_id, dtype=np.int64) for _ in range(2))
        mask, positions = np.zeros(S, dtype=np.float32), np.arange(S)
        begin = 0
        for number in samples.tolist():
            sample = self.part.sample(number, S)
            end = begin + len(sample.tokens)
            tokens[begin:end], labels[begin:end], mask[begin:end] = sample.tokens, sample.labels, sample.loss_mask
            if self.settings.packed:
                positions[begin:] = np.arange(S - begin)
            begin = end
        if self.settings.packed:
            positions[begin:] = np.arange(S - begin)
        values = {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions}
        return {name: torch.from_numpy(value) for name, value in values.items()}


@lru_cache(maxsize=8)
def _order(seed: int, split: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, split, epoch)).permutation(count)


def _write(rows: Rows, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=place.parent, prefix=".building-"))
    try:
        np.save(building / "samples.npy", rows.packs.samples)
        np.save(building / "starts.npy", rows.packs.starts)
        (building / "counts.json").write_text(json.dumps(asdict(rows.counts)) + "\n", encoding="utf-8")
        os.replace(building, place)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _read(place: Path) -> Rows:
    samples, starts = (_array(place / f"{name}.npy") for name in ("samples", "starts"))
    return Rows(Packs(samples, starts), RowCounts(**json.loads((place / "counts.json").read_text(encoding="utf-8"))))


def _array(path: Path) -> np.ndarray:
    """A numeric array on disk, memory-mapped; nothing is unpickled."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    return numpy_format.open_memmap(path, mode="r")
