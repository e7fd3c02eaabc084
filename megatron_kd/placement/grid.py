"""The ranks of a model, by their part of it. Pure arithmetic, of the plan's as of the run's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Coordinate(NamedTuple):
    """A rank's part of a model: of which copy, which pipeline stage, which tensor-parallel shard."""

    replica: int
    stage: int
    shard: int


@dataclass(frozen=True)
class Grid:
    """`dp` copies of a model, each over `tp` x `pp` ranks, on the ranks from `first_rank` on.

    Shards of a stage are neighbours. Then come the stages of a copy, and then copies; or, with `copies_first`, the
    copies of a stage and then stages, which is megatron-core's order. Without copies (`dp` 0), no rank has a part.
    """

    tp: int
    pp: int
    dp: int
    first_rank: int = 0
    copies_first: bool = False

    @property
    def size(self) -> int:
        """The number of ranks that hold a part of the model."""
        return self.tp * self.pp * self.dp

    def rank(self, replica: int, stage: int, shard: int) -> int:
        """The world rank at a coordinate."""
        part = stage * self.dp + replica if self.copies_first else replica * self.pp + stage
        return self.first_rank + part * self.tp + shard

    def coordinate(self, rank: int) -> Coordinate | None:
        """The coordinate of a world rank; None for one that holds no part of the model."""
        index = rank - self.first_rank
        if not 0 <= index < self.size:
            return None
        part, shard = divmod(index, self.tp)
        if self.copies_first:
            stage, replica = divmod(part, self.dp)
        else:
            replica, stage = divmod(part, self.pp)
        return Coordinate(replica, stage, shard)

    def stage(self, rank: int) -> int | None:
        """The pipeline stage on a world rank; None for one that holds no part of the model."""
        place = self.coordinate(rank)
        return None if place is None else place.stage

    def share(self, sequences: int) -> int:
        """Of `sequences`, those of the copy that has most; 0 without copies."""
        return -(-sequences // self.dp) if self.dp else 0

    def __str__(self) -> str:
        return f"TP {self.tp} x PP {self.pp} x DP {self.dp}"
