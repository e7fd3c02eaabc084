"""Bytes that a rank sends in a step, on average over ranks.

Collectives count as rings do: a reduce-scatter or an all-gather of b bytes over n ranks sends b (n - 1) / n from each,
an all-reduce twice that. What a rank keeps for itself of a hand-over is not taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import shard_parameters
from megatron_kd.placement.refusals import Strategy
from megatron_kd.planning.flops import recomputed_share
from megatron_kd.planning.memory import body_bytes, gradient_itemsize, trained_parameters
from megatron_kd.planning.pairs import delivered_layers
from megatron_kd.planning.setup import Setup


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


def traffic(plan: Setup, strategy: Strategy) -> Traffic:
    """The traffic of one step."""
    placed = strategy != "colocated"
    return Traffic(
        tensor_parallel=_tensor_parallel(plan, strategy),
        pipeline=_pipeline(plan, strategy),
        data_parallel=_data_parallel(plan),
        hand_over=_hand_over(plan) if placed else 0.0,
        as_logits=plan.tokens_per_step * plan.padded_vocab_size * plan.teacher_itemsize / plan.world_size
        if placed
        else 0.0,
        streamed=_streamed(plan, strategy),
    )


def _tensor_parallel(plan: Setup, strategy: Strategy) -> float:
    """Two all-reduces a layer and direction, and one each at embedding and head; as much with sequence parallelism."""
    layers = plan.model.num_layers
    passes = 4 * layers + 2 * recomputed_share(plan.model, plan.student.pp * plan.chunks) * layers + 2
    student = passes * _ring(plan.student.tp, 2) * _hidden_a_step(plan, plan.model, plan.itemsize)
    tp = plan.teacher_grid(strategy).tp
    teacher = 2 * plan.teacher.num_layers * _ring(tp, 2) * _hidden_a_step(plan, plan.teacher, plan.teacher_itemsize)
    return student * plan.student.tp / plan.world_size + teacher * tp / plan.world_size


def _pipeline(plan: Setup, strategy: Strategy) -> float:
    """Between neighbouring stages: the student's both ways, the teacher's forward; joined under `colocated`."""
    borders = plan.student.pp * plan.chunks - 1
    hidden = _hidden_a_step(plan, plan.model, plan.itemsize)
    teacher = _hidden_a_step(plan, plan.teacher, plan.teacher_itemsize)
    if strategy == "colocated":
        return 2 * borders * (hidden + teacher) * _copies(plan) / plan.world_size
    grid = plan.teacher_grid(strategy)
    sent = 2 * borders * hidden * _copies(plan) + (grid.pp - 1) * teacher * grid.tp
    return sent / plan.world_size


def _data_parallel(plan: Setup) -> float:
    dp, stages = plan.student.dp, plan.student.pp
    parameters = sum(trained_parameters(plan, stage) for stage in range(stages)) / stages
    if plan.distributed_optimizer:
        return _ring(dp, 1) * parameters * (gradient_itemsize(plan) + plan.itemsize)
    return _ring(dp, 2) * parameters * gradient_itemsize(plan)


def _hand_over(plan: Setup) -> float:
    """Each shard of the student gets all positions, or its part of them under sequence parallelism."""
    layers = sum(len(delivered_layers(plan, stage)) for stage in range(plan.student.pp))
    return layers * _hidden_a_step(plan, plan.teacher, plan.teacher_itemsize) * _copies(plan) / plan.world_size


def _streamed(plan: Setup, strategy: Strategy) -> float:
    """All layers of the body, once a micro-batch of the teacher."""
    if strategy != "cpu" or plan.device == "cpu":
        return 0.0
    shard = shard_parameters(plan.teacher, padded_vocab_size=plan.padded_vocab_size)
    forwards = -(-plan.teacher_sequences(strategy) // plan.teacher_micro_batch_size)
    return float(forwards * (body_bytes(plan, shard) - shard.embedding * plan.teacher_itemsize))


def _copies(plan: Setup) -> int:
    """How often a shard group of the student receives the same hidden states."""
    return 1 if plan.model.sequence_parallel else plan.student.tp


def _hidden_a_step(plan: Setup, model: GPTModelProvider, itemsize: int) -> float:
    return float(plan.tokens_per_step * model.hidden_size * itemsize)


def _ring(ranks: int, times: int) -> float:
    return times * (ranks - 1) / ranks
