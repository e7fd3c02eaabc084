"""The ranks of a teacher that has a parallel layout of its own. Pure arithmetic, of the plan's as of the run's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class TeacherCoordinate(NamedTuple):
    """A rank's part of the teacher: of which copy, which pipeline stage, which tensor-parallel shard."""

    replica: int
    stage: int
    shard: int


@dataclass(frozen=True)
class TeacherGrid:
    """`dp` copies of a teacher, each over `tp` x `pp` ranks, on the ranks from `first_rank` on.

    Shards of a stage are neighbours, then stages, then copies.
    """

    tp: int
    pp: int
    dp: int
    first_rank: int = 0

    @property
    def size(self) -> int:
        """The number of ranks that hold a part of the teacher."""
        return self.tp * self.pp * self.dp

    def rank(self, replica: int, stage: int, shard: int) -> int:
        """The world rank at a coordinate."""
        return self.first_rank + (replica * self.pp + stage) * self.tp + shard

    def coordinate(self, rank: int) -> TeacherCoordinate | None:
        """The coordinate of a world rank; None for one that holds no part of the teacher."""
        index = rank - self.first_rank
        if not 0 <= index < self.size:
            return None
        part, shard = divmod(index, self.tp)
        return TeacherCoordinate(*divmod(part, self.pp), shard)

    def stage(self, rank: int) -> int | None:
        """The teacher's pipeline stage on a world rank; None for one that holds no part of the teacher."""
        place = self.coordinate(rank)
        return None if place is None else place.stage

    def __str__(self) -> str:
        return f"TP {self.tp} x PP {self.pp} x DP {self.dp}"
