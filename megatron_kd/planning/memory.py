"""Memory of a rank, by part, at the moments of a step when it may be largest.

Weights, gradients and optimizer state are there throughout. A step's peak is the largest of: the teacher's forward, the
hand-over of its hidden states, the loss, the beginning of the student's backward, the embedding's gradient at its end,
and the optimizer's update. Allocator fragmentation, communicators and the CUDA context are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_kd.planning.activations import backward_extra, student_work
from megatron_kd.planning.loss_memory import LossMemory, logits_loss, pair_kept, pair_working
from megatron_kd.planning.scenario import Scenario
from megatron_kd.planning.student_memory import (
    embedding_gradient,
    gradient_itemsize,
    kept_in_flight,
    optimizer_bytes,
    trained_parameters,
    update_bytes,
)
from megatron_kd.planning.teacher_memory import TeacherMemory

WEIGHTS, GRADIENTS, OPTIMIZER = "student weights", "gradients", "optimizer"
ACTIVATIONS = "student activations"
BODY, HEAD, WORKING = "teacher body", "teacher head", "teacher working set"
HANDED, LOSS = "hidden states handed over", "loss"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, BODY, HEAD, WORKING, HANDED, LOSS)
STATE = (WEIGHTS, GRADIENTS, OPTIMIZER, BODY, HEAD)
MOMENTS = ("teacher forward", "hand-over", "loss", "loss backward", "backward", "embedding gradient", "update")


@dataclass(frozen=True)
class Moment:
    """Memory of a rank at one moment of a step, in bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class RankMemory:
    """A rank's memory.

    Attributes:
        rank: one of the world's ranks that has this much.
        student_stage, teacher_stage: what it holds; the teacher's is None where it holds no part of the body.
        moments: of a step.
    """

    rank: int
    student_stage: int
    teacher_stage: int | None
    moments: tuple[Moment, ...]

    @cached_property
    def peak(self) -> Moment:
        """The moment with most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def state(self) -> int:
        """Bytes of both models, gradients and optimizer, which are there throughout."""
        return sum(self.peak.parts[name] for name in STATE)


def rank_memory(scenario: Scenario, rank: int) -> RankMemory:
    """The memory of one rank. Bytes on its device; the strategy's `host_bytes` are beside them."""
    stage, teacher_stage = scenario.stages(rank)
    return RankMemory(rank, stage, teacher_stage, tuple(_Rank(scenario, stage, teacher_stage).moments()))


def rank_memories(scenario: Scenario) -> list[RankMemory]:
    """One rank for each combination of a student's and a teacher's stage that occurs."""
    first: dict[tuple[int, int | None], int] = {}
    for rank in range(scenario.run.world_size):
        first.setdefault(scenario.stages(rank), rank)
    return [rank_memory(scenario, rank) for rank in first.values()]


class _Rank:
    """The moments of a rank on stage `stage` of the student, and `teacher_stage` of the teacher's body."""

    def __init__(self, scenario: Scenario, stage: int, teacher_stage: int | None) -> None:
        run = scenario.run
        self.scenario, self.run, self.stage = scenario, run, stage
        self.in_pipeline = scenario.strategy.in_student_pipeline
        self.last = stage == run.student.pp - 1
        self.parameters = trained_parameters(run, stage)
        self.kept = kept_in_flight(run, stage, with_teacher=self.in_pipeline)
        self.loss = logits_loss(run) if self.last else LossMemory(0, 0, 0)
        self.teacher = TeacherMemory(scenario, stage, teacher_stage)
        self.state = {
            WEIGHTS: self.parameters * run.itemsize,
            GRADIENTS: self.parameters * gradient_itemsize(run),
            OPTIMIZER: optimizer_bytes(run, self.parameters),
            BODY: self.teacher.body,
            HEAD: self.teacher.head,
        }

    def moments(self) -> list[Moment]:
        """All of a step."""
        run, kept = self.run, self.kept
        gradient = kept.others + embedding_gradient(run, self.stage)
        extra = backward_extra(run.model, student_work(run)) + kept.recomputed
        return [
            self._moment("embedding gradient", activations=gradient),
            *(self._joint_forward() if self.in_pipeline else self._own_pass()),
            *(self._losses() if self.last else ()),
            self._moment(
                "backward", activations=kept.others + kept.newest + extra, loss=self.loss.kept + self._pairs()
            ),
            self._moment("update", optimizer=update_bytes(run, self.parameters), handed=0),
        ]

    def _joint_forward(self) -> list[Moment]:
        """The teacher's forward in the student's pipeline; its outputs stay for the losses."""
        working = self.teacher.working + self.teacher.read
        return [self._moment("teacher forward", activations=self.kept.others, working=working)]

    def _own_pass(self) -> list[Moment]:
        """The last round of the teacher's own pass at the start of a step, and of the exchange of its outputs.

        As in `teachers/handover.py`: outgoing pieces are packed into new buffers, then the outputs are freed. Hidden
        states that arrive in several pieces are assembled in a separate buffer.
        """
        teacher = self.teacher
        here = int(teacher.received * self.scenario.round_share)  # that this rank gets in this round
        before = teacher.received - here
        arriving = here * (2 if teacher.arrives_in_pieces else 1)
        return [
            self._moment("teacher forward", working=teacher.working, handed=before + teacher.produced),
            self._moment("hand-over", handed=before + teacher.produced + teacher.sent),
            self._moment("hand-over", handed=before + teacher.sent + arriving),
        ]

    def _losses(self) -> list[Moment]:
        """Forward and backward of the losses, of the newest micro-batch."""
        pairs, now = self._pairs(), self.kept.others + self.kept.newest
        forward = max(self.loss.forward, pair_working(self.run) if pairs else 0) + pairs
        moments = {"loss": forward, "loss backward": self.loss.backward + pairs}
        read = self.teacher.read if self.in_pipeline else 0
        return [self._moment(name, activations=now, working=read, loss=loss) for name, loss in moments.items()]

    def _pairs(self) -> int:
        """Bytes that the losses of this rank's layer pairs save for their backward."""
        return pair_kept(self.run) * self.run.pairs_on(self.stage)

    def _moment(
        self,
        name: str,
        *,
        activations: int = 0,
        working: int = 0,
        loss: int = 0,
        optimizer: int = 0,
        handed: int | None = None,
    ) -> Moment:
        dynamic = {
            OPTIMIZER: self.state[OPTIMIZER] + optimizer,
            ACTIVATIONS: activations,
            WORKING: working,
            HANDED: self.teacher.received if handed is None else handed,
            LOSS: max(loss, self.loss.lasting),
        }
        return Moment(name, {part: {**self.state, **dynamic}[part] for part in PARTS})
