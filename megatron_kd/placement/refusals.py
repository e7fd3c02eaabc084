"""Problems that several strategies have in common."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.kd_rules import pair_problem
from megatron_kd.config.problem import Problem
from megatron_kd.config.stages import NOT_HIDDEN


def apart(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    """Problems of every teacher that runs apart from the student."""
    yield from _virtual_pipeline(cfg, model)
    yield from _pairs_that_are_not_handed_over(model)


def whole(cfg: ConfigContainer, model: GPTDistillationProvider, strategy: str) -> Iterator[Problem]:
    """Problems of a teacher that runs apart from the student, the whole of it on one rank."""
    yield from apart(cfg, model)
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        field = f"model.teacher.{name}"
        if getattr(model.teacher, name) > 1:
            yield Problem.of(cfg, field, f"under {strategy} a rank computes the whole teacher", f"set {field}=1")


def _virtual_pipeline(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    if model.teacher.virtual_pipeline_model_parallel_size is not None:
        name = "model.teacher.virtual_pipeline_model_parallel_size"
        yield Problem.of(cfg, name, "a teacher runs forward only, where chunks gain nothing", f"set {name}=null")


def _pairs_that_are_not_handed_over(model: GPTDistillationProvider) -> Iterator[Problem]:
    for pair in model.kd_config.intermediate_layer_pairs:
        for layer in pair[:2]:
            if layer.split(".")[-1] in NOT_HIDDEN:
                why = f"the output of {layer} is not a hidden state, and a teacher elsewhere sends only these"
                yield pair_problem(pair, why, "pair a norm instead, such as decoder.layers.N.input_layernorm")
