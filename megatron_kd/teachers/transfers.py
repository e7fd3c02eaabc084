"""Who runs which sequences through the teacher, and which pieces of hidden states go from which rank to which.

Pure arithmetic. The sequences of a global batch are numbered by the student's data-parallel rank, its micro-batch and
the row therein; each copy of the teacher takes one run of that order, so that equal layouts need no traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from megatron_kd.placement.grid import Grid
from megatron_kd.placement.wanted import WantedLayer


@dataclass(frozen=True)
class Span:
    """Whole numbers from `start` to below `stop`."""

    start: int
    stop: int

    def __and__(self, other: Span) -> Span:
        return Span(max(self.start, other.start), min(self.stop, other.stop))

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def since(self, origin: int) -> slice:
        """As a slice of something that begins at `origin`."""
        return slice(self.start - origin, self.stop - origin)


@dataclass(frozen=True)
class StudentRank:
    """The coordinates of a student rank: its data-parallel rank, pipeline stage and shard."""

    rank: int
    replica: int
    stage: int
    shard: int


@dataclass(frozen=True)
class Piece:
    """A block of one layer's hidden states on its way from a teacher rank to a student rank.

    `source` slices it from the output of the teacher's forward `forward` on the source rank, [S, B, G] there;
    `target` is its position in the student's micro-batch `micro_batch` on the target rank.
    """

    layer: str
    forward: int
    source: tuple[slice, slice]
    micro_batch: int
    target: tuple[slice, slice]

    @property
    def positions_and_rows(self) -> tuple[int, int]:
        """Its size along the sequence and along the batch."""
        positions, rows = self.target
        return positions.stop - positions.start, rows.stop - rows.start


@dataclass(frozen=True)
class Exchange:
    """One global batch: its shape, the two layouts, and what travels.

    Attributes:
        grid: the teacher's ranks, as numbers of the peers that take part; so are those of `students`.
        students: every rank of the student; a rank of the teacher need not be one.
        layers: what travels.
        num_microbatches: of each data-parallel rank of the student.
        micro_batch_size, teacher_micro_batch_size: in sequences.
        seq_length: in tokens.
        student_shards, teacher_shards: parts of the sequence that a rank holds one of, under sequence parallelism;
            1 where every rank holds it whole.
    """

    grid: Grid
    students: tuple[StudentRank, ...]
    layers: tuple[WantedLayer, ...]
    num_microbatches: int
    micro_batch_size: int
    teacher_micro_batch_size: int
    seq_length: int
    student_shards: int
    teacher_shards: int

    @property
    def sequences_each(self) -> int:
        """Sequences of one data-parallel rank of the student."""
        return self.num_microbatches * self.micro_batch_size

    @cached_property
    def num_sequences(self) -> int:
        """Sequences of the global batch."""
        return self.sequences_each * (1 + max(student.replica for student in self.students))

    def share(self, replica: int) -> Span:
        """The sequences that a copy of the teacher runs."""
        return Span(*(self.num_sequences * edge // self.grid.dp for edge in (replica, replica + 1)))

    def forwards(self, replica: int) -> int:
        """How many teacher micro-batches those are; the last may be padded."""
        return -(-len(self.share(replica)) // self.teacher_micro_batch_size)

    def pieces(self, source: int, target: StudentRank) -> Iterator[Piece]:
        """The pieces that rank `source` sends to `target`, in an order that both sides derive."""
        place = self.grid.coordinate(source)
        if place is None:
            return
        for layer in self.layers:
            if place.stage != layer.teacher_stage or target.stage not in layer.student_stages:
                continue
            held, given = self._held_positions(place.shard), self._given_positions(source, target)
            wanted = self._positions(target.shard, self.student_shards)
            positions = given & wanted
            if not positions:
                continue
            for forward, rows, micro_batch, target_rows in self._rows(place.replica, target.replica):
                yield Piece(
                    layer.name,
                    forward,
                    (positions.since(held.start), rows),
                    micro_batch,
                    (positions.since(wanted.start), target_rows),
                )

    def _rows(self, teacher_replica: int, student_replica: int) -> Iterator[tuple[int, slice, int, slice]]:
        """Cut what the two have in common at the borders of both kinds of micro-batches."""
        share, first = self.share(teacher_replica), student_replica * self.sequences_each
        common = share & Span(first, first + self.sequences_each)
        here = common.start
        while here < common.stop:
            forward = (here - share.start) // self.teacher_micro_batch_size
            micro_batch = (here - first) // self.micro_batch_size
            source_start = share.start + forward * self.teacher_micro_batch_size
            target_start = first + micro_batch * self.micro_batch_size
            ends = source_start + self.teacher_micro_batch_size, target_start + self.micro_batch_size, common.stop
            piece = Span(here, min(ends))
            yield forward, piece.since(source_start), micro_batch, piece.since(target_start)
            here = piece.stop

    def _positions(self, shard: int, shards: int) -> Span:
        if shards == 1:
            return Span(0, self.seq_length)
        return Span(self.seq_length * shard // shards, self.seq_length * (shard + 1) // shards)

    def _held_positions(self, shard: int) -> Span:
        return self._positions(shard, self.teacher_shards)

    def _given_positions(self, source: int, target: StudentRank) -> Span:
        """The positions that `source` is the one to send to `target`.

        Where every shard of the teacher holds all positions, a rank takes what it has itself, and the shards divide
        the rest of the work.
        """
        place = self.grid.coordinate(source)
        assert place is not None
        if self.teacher_shards > 1:
            return self._held_positions(place.shard)
        own = self.grid.coordinate(target.rank)
        if own is not None and own[:2] == place[:2]:
            return Span(0, self.seq_length if own == place else 0)
        return self._positions(place.shard, self.grid.tp)
