"""Floating-point operations of a token, and how much of a step they take on the ranks that have most to do.

A multiplication with a weight is two operations: a forward costs 2 N a token for N weights in matrices, the head among
them and the embedding not, and a backward twice that (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Causal
attention adds 2 S N D a layer and token: scores and their product with the values over, on average, half the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import layer_sizes, shard_parameters
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.scenario import Scenario


@dataclass(frozen=True)
class Flops:
    """Operations of one token.

    Attributes:
        teacher: 2 N_t, the head's included.
        student: 6 N_s.
        recompute: of the student's layers that run forward twice.
        attention: of both models' attention, in all passes.
    """

    teacher: float
    student: float
    recompute: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.teacher + self.student + self.recompute + self.attention


def flops_per_token(run: Workload) -> Flops:
    """Operations of a token of training; they do not depend on where the teacher is."""
    student, teacher = run.model, run.teacher
    twice = recomputed_share(student, run.student.pp * run.chunks)
    attention_again = 1.0 if student.recompute_granularity == "selective" else twice
    return Flops(
        teacher=2 * _matrix_weights(teacher, run.padded_vocab_size),
        student=6 * _matrix_weights(student, run.padded_vocab_size),
        recompute=2 * twice * _layer_weights(student),
        attention=attention_flops(teacher) + (3 + attention_again) * attention_flops(student),
    )


def attention_flops(model: GPTModelProvider) -> float:
    """Operations of causal attention of a token, forward, in all layers: 2 S N D each."""
    return 2.0 * model.seq_length * layer_sizes(model, 1).queries * model.num_layers


def recomputed_share(model: GPTModelProvider, parts: int) -> float:
    """The share of the layers that run forward a second time, of `parts` equal parts of the model."""
    if model.recompute_granularity != "full":
        return 0.0
    if model.recompute_method != "block":
        return 1.0
    return min(1.0, (model.recompute_num_layers or 1) * parts / model.num_layers)


def pipeline_bubble(stages: int, chunks: int, num_microbatches: int) -> float:
    """The share of a pass that a pipeline's stages wait for each other (Narayanan et al. 2021, arXiv:2104.04473)."""
    return (stages - 1) / (num_microbatches * chunks + stages - 1) if stages > 1 else 0.0


def student_bubble(run: Workload) -> float:
    """The same for the student's pipeline."""
    return pipeline_bubble(run.student.pp, run.chunks, run.num_microbatches)


def teacher_bubble(scenario: Scenario) -> float:
    """The same for the teacher's own pass; in the student's pipeline, the student's."""
    if scenario.strategy.in_student_pipeline:
        return student_bubble(scenario.run)
    return pipeline_bubble(scenario.grid.pp, 1, scenario.forwards_a_round)


def busiest_rank(scenario: Scenario) -> float:
    """Operations that fit in the time of a step on the rank that has most to do, waiting for other stages included."""
    run, grid = scenario.run, scenario.grid
    flops, teacher_attention = flops_per_token(run), attention_flops(run.teacher)
    student = (flops.total - flops.teacher - teacher_attention) * run.tokens_per_step / run.world_size
    student /= 1 - student_bubble(run)
    tokens = scenario.teacher_sequences * run.model.seq_length
    teacher = (flops.teacher + teacher_attention) * tokens / (grid.tp * grid.pp)
    return student + teacher / (1 - teacher_bubble(scenario))


def _matrix_weights(model: GPTModelProvider, padded_vocab_size: int) -> int:
    return _layer_weights(model) + padded_vocab_size * model.hidden_size


def _layer_weights(model: GPTModelProvider) -> int:
    return shard_parameters(model, padded_vocab_size=0).matrix_elements
