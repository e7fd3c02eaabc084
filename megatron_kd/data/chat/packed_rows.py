"""Which samples share a row: best fit, decreasing. Pure arithmetic on lengths."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """The samples of each row: those of row r are `samples[starts[r]:starts[r + 1]]`, ascending.

    Attributes:
        samples: positions in the lengths that were packed, each once, int64.
        starts: one more than there are rows, int64.
    """

    samples: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> np.ndarray:
        """The samples of one row."""
        return self.samples[self.starts[index] : self.starts[index + 1]]


def one_a_row(count: int) -> Packs:
    """No packing: each of `count` samples has a row."""
    return Packs(np.arange(count), np.arange(count + 1))


def best_fit(lengths: np.ndarray, size: int) -> Packs:
    """Pack samples into rows of `size` tokens.

    The longest first, each goes into the fullest row that has room for it, or into a new one (Johnson et al. 1974: at
    most 11/9 of the fewest possible rows, and four). The same lengths give the same rows, in
    the order of their first samples. N samples take O(N log `size`) steps.

    Args:
        lengths: of each sample in tokens, 1 to `size`.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows by the exact number of tokens left in them
    rooms: list[int] = []  # its keys, ascending
    for sample in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sample])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = size, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        rows[row].append(sample)
        left = room - length
        if left and left not in by_room:
            insort(rooms, left)
        if left:
            by_room.setdefault(left, []).append(row)
    ordered = sorted(sorted(row) for row in rows)
    starts = np.cumsum([0, *(len(row) for row in ordered)], dtype=np.int64)
    return Packs(np.array([sample for row in ordered for sample in row], dtype=np.int64), starts)
