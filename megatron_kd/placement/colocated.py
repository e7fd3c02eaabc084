"""`colocated`: the teacher is sharded like the student and runs in the student's pipeline. Nothing is handed over."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import student_dtype
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_rules import pair_problem
from megatron_kd.config.model_parts import ParallelLayout, names
from megatron_kd.config.problem import Problem
from megatron_kd.config.stages import LayerPlace, place_of
from megatron_kd.config.values import show
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload

_VIRTUAL = "virtual_pipeline_model_parallel_size"  # not of a colocated teacher at all
_LAYOUT = tuple(name for name in names(ParallelLayout) if name != _VIRTUAL)


class Colocated(Strategy):
    """A copy of the teacher for each data-parallel replica of the student, on the same ranks."""

    name = "colocated"
    in_student_pipeline = True

    def problems(
        self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None
    ) -> Iterator[Problem]:
        """Settings that a shared pipeline for both models does not support."""
        yield from _layouts_that_differ(cfg, model)
        yield from _virtual_pipelines(cfg, model)
        if model.pipeline_model_parallel_size > 1 and model.teacher_dtype not in (None, student_dtype(cfg)):
            yield Problem.of(
                cfg,
                "model.teacher_dtype mixed_precision.precision model.pipeline_model_parallel_size",
                "in one pipeline the hidden states of both models travel concatenated, so in one precision",
                "set model.teacher_dtype=null, or model.pipeline_model_parallel_size=1 for both models",
            )
        if model.teacher_micro_batch_size not in (None, cfg.train.micro_batch_size):
            fields = "model.teacher_micro_batch_size train.micro_batch_size"
            why = "a colocated teacher reads the student's micro-batches"
            yield Problem.of(cfg, fields, why, "set model.teacher_micro_batch_size=null")
        if model.pipeline_model_parallel_size == model.teacher.pipeline_model_parallel_size:
            yield from _pairs_on_two_stages(model)

    def grid(self, run: Workload) -> Grid:
        """The student's ranks."""
        return run.student

    def head_bytes(self, run: Workload, student_stage: int) -> int:
        """As in any model of its own: on the last stage, and none where it is the embedding."""
        return run.teacher_shard(run.student, student_stage).head * run.teacher_itemsize

    def handed_over_bytes(self, run: Workload) -> float:
        """None: the losses are where the teacher is."""
        return 0.0


def _layouts_that_differ(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    for name in _LAYOUT:
        if getattr(model, name) != getattr(model.teacher, name):
            cure = f"set model.teacher.{name}={show(getattr(model, name))}"
            why = "must be equal for a colocated teacher, which shares the student's layout"
            yield Problem.of(cfg, f"model.{name} model.teacher.{name}", why, cure)


def _virtual_pipelines(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    for name, provider in (("model", model), ("model.teacher", model.teacher)):
        if provider.virtual_pipeline_model_parallel_size is not None:
            field = f"{name}.{_VIRTUAL}"
            why = "ModelOpt's pipeline mechanism does not support several model chunks per stage"
            yield Problem.of(cfg, field, why, f"set {field}=null")


def _pairs_on_two_stages(model: GPTDistillationProvider) -> Iterator[Problem]:
    for pair in model.kd_config.intermediate_layer_pairs:
        if len(pair) not in (2, 3):
            continue
        places = _place(model, pair[0]), _place(model.teacher, pair[1])
        if places[0] is not None and places[1] is not None and places[0].stage != places[1].stage:
            why = (
                f"the student's layer is on pipeline stage {places[0].stage} and the teacher's on {places[1].stage}, "
                "between which hidden states of a colocated teacher do not travel"
            )
            yield pair_problem(pair, why, "pair layers of one stage")


def _place(model: GPTModelProvider, layer: str) -> LayerPlace | None:
    return place_of(layer, num_layers=model.num_layers, stages=max(model.pipeline_model_parallel_size, 1))
