"""Runs that several strategies refuse for one reason."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import line
from megatron_kd.config.stages import NOT_HIDDEN

PAIRS = "model.kd_config.intermediate_layer_pairs"


def not_forward_only(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[str]:
    """A virtual pipeline, of a teacher that runs apart from the student."""
    if model.teacher.virtual_pipeline_model_parallel_size is not None:
        name = "model.teacher.virtual_pipeline_model_parallel_size"
        yield line(cfg, name, f"a teacher runs forward only, where chunks gain nothing; set {name}=null")


def not_hidden_states(model: GPTDistillationProvider) -> Iterator[str]:
    """Pairs of outputs that are no hidden states, where only these reach the student."""
    for pair in model.kd_config.intermediate_layer_pairs:
        for layer in pair[:2]:
            if layer.split(".")[-1] in NOT_HIDDEN:
                yield (
                    f"{PAIRS}: the output of {layer} is no hidden state, and only hidden states travel from a teacher "
                    "elsewhere; pair a norm instead, such as decoder.layers.N.input_layernorm"
                )


def not_whole(cfg: ConfigContainer, model: GPTDistillationProvider, strategy: str) -> Iterator[str]:
    """Sizes of a layout, where a rank computes the whole teacher."""
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        field = f"model.teacher.{name}"
        if getattr(model.teacher, name) > 1:
            yield line(cfg, field, f"under {strategy} a rank computes the whole teacher; set {field}=1")
