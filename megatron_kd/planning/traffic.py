"""Bytes that a rank sends in a step, on average over ranks.

Collectives count as rings do: a reduce-scatter or an all-gather of b bytes over n ranks sends b (n - 1) / n from each,
an all-reduce twice that. What a rank keeps for itself of a hand-over is not taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.placement.workload import Workload
from megatron_kd.planning.flops import recomputed_share
from megatron_kd.planning.scenario import Scenario
from megatron_kd.planning.student_memory import gradient_itemsize, trained_parameters


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by a rank in a step.

    Attributes:
        tensor_parallel: sums over shards, of both models.
        pipeline: hidden states and their gradients between stages, of both models.
        data_parallel: gradients, and weights with the distributed optimizer.
        hand_over: the teacher's hidden states, to where the losses are.
        as_logits: what the hand-over would be if logits travelled.
        streamed: the teacher's weights from host to device.
    """

    tensor_parallel: float
    pipeline: float
    data_parallel: float
    hand_over: float
    as_logits: float
    streamed: float

    @property
    def total(self) -> float:
        """Bytes between ranks."""
        return self.tensor_parallel + self.pipeline + self.data_parallel + self.hand_over


def traffic(scenario: Scenario) -> Traffic:
    """The traffic of one step."""
    run, strategy = scenario.run, scenario.strategy
    handed_over = strategy.handed_over_bytes(run)
    logits = run.tokens_per_step * run.padded_vocab_size * run.teacher_itemsize / run.world_size
    return Traffic(
        tensor_parallel=_tensor_parallel(scenario),
        pipeline=_pipeline(scenario),
        data_parallel=_data_parallel(run),
        hand_over=handed_over,
        as_logits=logits if handed_over else 0.0,
        streamed=strategy.streamed_bytes(run),
    )


def _tensor_parallel(scenario: Scenario) -> float:
    """Two all-reduces a layer and direction, and one each at embedding and head; as much with sequence parallelism."""
    run, layers = scenario.run, scenario.run.model.num_layers
    passes = 4 * layers + 2 * recomputed_share(run.model, run.student.pp * run.chunks) * layers + 2
    student = passes * _ring(run.student.tp, 2) * run.student_hidden_bytes
    tp = scenario.grid.tp
    teacher = 2 * run.teacher.num_layers * _ring(tp, 2) * run.teacher_hidden_bytes
    return student * run.student.tp / run.world_size + teacher * tp / run.world_size


def _pipeline(scenario: Scenario) -> float:
    """Between neighbouring stages: the student's both ways, the teacher's forward; joined in the student's pipeline."""
    run, grid = scenario.run, scenario.grid
    borders = run.student.pp * run.chunks - 1
    student, teacher = run.student_hidden_bytes, run.teacher_hidden_bytes
    if scenario.strategy.in_student_pipeline:
        return 2 * borders * (student + teacher) * run.receivers / run.world_size
    sent = 2 * borders * student * run.receivers + (grid.pp - 1) * teacher * grid.tp
    return sent / run.world_size


def _data_parallel(run: Workload) -> float:
    dp, stages = run.student.dp, run.student.pp
    parameters = sum(trained_parameters(run, stage) for stage in range(stages)) / stages
    if run.cfg.ddp.use_distributed_optimizer:
        return _ring(dp, 1) * parameters * (gradient_itemsize(run) + run.itemsize)
    return _ring(dp, 2) * parameters * gradient_itemsize(run)


def _ring(ranks: int, times: int) -> float:
    return times * (ranks - 1) / ranks
