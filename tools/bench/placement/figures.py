"""The settings and the measurements of `teacher_placement.py`, and arithmetic on them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.bench.whole_step import Architecture

BODY, HEAD, STUDENT = "body", "head", "student"


@dataclass(frozen=True)
class Sizes:
    """Both models as "layers x hidden", their layouts as "tensor x pipeline" parallel, and a step.

    Attributes:
        ranks: of which the student's data parallelism takes what its layout leaves.
        teacher_layout: under `balanced`.
        micro_batch, batch: sequences of the student's micro-batch, and of a step on all ranks.
    """

    ranks: int = 4
    teacher: str = "8x512"
    student: str = "7x128"
    teacher_layout: str = "2x2"
    student_layout: str = "1x1"
    vocab: int = 4096
    seq: int = 128
    micro_batch: int = 1
    batch: int = 8


@dataclass(frozen=True)
class Side:
    """A placement. `teacher_batch`: sequences of its forward; None: the student's micro-batch."""

    strategy: str
    share: bool = True
    teacher_batch: int | None = None

    def __str__(self) -> str:
        batch = "" if self.teacher_batch is None else f", {self.teacher_batch} a teacher forward"
        return self.strategy + ("" if self.share else ", not shared") + batch


@dataclass(frozen=True)
class Holding:
    """A tensor of a rank. `memory` is equal for two tensors, of any ranks, if and only if they are the same memory."""

    part: str
    nbytes: int
    memory: tuple[object, ...]


@dataclass(frozen=True)
class RankMemory:
    """Of one rank. `pss`: beyond its imports; `pss_shared`: of the memory that tensors share with other ranks."""

    holdings: tuple[Holding, ...]
    pss: int
    pss_shared: int

    def bytes_of(self, part: str) -> int:
        """Of one part, what is shared included."""
        return total(holding for holding in self.holdings if holding.part == part)


@dataclass(frozen=True)
class Spent:
    """Seconds of a rank's step, and of these the ones in which it waited for others."""

    seconds: float
    waiting: float


@dataclass(frozen=True)
class Traffic:
    """Bytes per step that the hand-over sends between all ranks, and what the teacher's logits would take instead."""

    hidden: int
    logits: int


@dataclass(frozen=True)
class Measured:
    """Of a side: memory by rank, steps by round and rank, traffic."""

    memory: list[RankMemory]
    steps: list[list[Spent]]
    traffic: Traffic

    @property
    def seconds(self) -> list[float]:
        """Of each round: of its slowest rank."""
        return [max(spent.seconds for spent in ranks) for ranks in self.steps]

    def waiting(self, rank: int) -> float:
        """The share of its steps in which a rank waits: the median over rounds."""
        return statistics.median(ranks[rank].waiting / ranks[rank].seconds for ranks in self.steps)

    def host_bytes(self, *parts: str) -> int:
        """Of the parts on all ranks, which are of one machine."""
        return total(holding for rank in self.memory for holding in rank.holdings if holding.part in parts)


def one_copy(text: str, vocab: int) -> dict[str, int]:
    """Bytes in float32 of the body and the head of a model of "layers x hidden" over `vocab` ids."""
    shape = Architecture.parse(text)
    width, hidden = -(-vocab // 128) * 128, shape.hidden
    layer = 4 * hidden**2 + 3 * hidden * shape.ffn + 2 * hidden  # attention, gated feed-forward, norms
    return {BODY: 4 * (width * hidden + shape.layers * layer + hidden), HEAD: 4 * width * hidden}


def total(holdings: Iterable[Holding]) -> int:
    """Bytes, the same memory once."""
    return sum({holding.memory: holding.nbytes for holding in holdings}.values())


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of each round."""
    return [top / bottom for top, bottom in zip(over, under, strict=True)]
