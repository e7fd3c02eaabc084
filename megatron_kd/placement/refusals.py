"""Runs that several strategies refuse for one reason."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.kd_rules import pair_problem
from megatron_kd.config.problem import Problem
from megatron_kd.config.stages import NOT_HIDDEN


def not_forward_only(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    """A virtual pipeline, of a teacher that runs apart from the student."""
    if model.teacher.virtual_pipeline_model_parallel_size is not None:
        name = "model.teacher.virtual_pipeline_model_parallel_size"
        yield Problem.of(cfg, name, "a teacher runs forward only, where chunks gain nothing", f"set {name}=null")


def not_hidden_states(model: GPTDistillationProvider) -> Iterator[Problem]:
    """Pairs of outputs that are no hidden states, where only these reach the student."""
    for pair in model.kd_config.intermediate_layer_pairs:
        for layer in pair[:2]:
            if layer.split(".")[-1] in NOT_HIDDEN:
                why = f"the output of {layer} is no hidden state, and only these travel from a teacher elsewhere"
                yield pair_problem(pair, why, "pair a norm instead, such as decoder.layers.N.input_layernorm")


def not_whole(cfg: ConfigContainer, model: GPTDistillationProvider, strategy: str) -> Iterator[Problem]:
    """Sizes of a layout, where a rank computes the whole teacher."""
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        field = f"model.teacher.{name}"
        if getattr(model.teacher, name) > 1:
            yield Problem.of(cfg, field, f"under {strategy} a rank computes the whole teacher", f"set {field}=1")
