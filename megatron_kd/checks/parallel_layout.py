"""Parallel layouts that cannot be: what tensor, pipeline, sequence and context parallelism must divide."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem, divides


def layout_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems of each model's own layout; how the two fit together is in `distillation`."""
    for name, model in cfg.models.by_field():
        yield from _tensor_parallel(cfg, name, model)
        yield from _sequence_parallel(cfg, name, model)
        yield from _context_parallel(cfg, name, model)
        yield from _pipeline_parallel(cfg, name, model)
        yield from _virtual_pipeline(cfg, name, model)


def _tensor_parallel(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    size, size_name = model.tensor_model_parallel_size, f"{name}.tensor_model_parallel_size"
    groups = model.num_query_groups
    if not divides(size, model.num_attention_heads):
        fields = f"{name}.num_attention_heads {size_name}"
        yield Problem.of(cfg, fields, "heads are split over ranks", _divisor_of("heads"))
    if groups is not None and 0 < groups < size:
        yield Problem.of(
            cfg,
            f"{name}.num_query_groups {size_name}",
            "each tensor-parallel rank needs at least one query group of its own (they are split, not copied)",
            f"set {size_name} to at most {groups}",
        )
    elif groups is not None and not divides(size, groups):
        fields = f"{name}.num_query_groups {size_name}"
        yield Problem.of(cfg, fields, "groups are split over ranks", _divisor_of("groups"))
    ffn, ffn_name = model.ffn_size, f"{name}.{'hidden_size' if model.ffn_hidden_size is None else 'ffn_hidden_size'}"
    if not divides(size, ffn):
        why = f"the feed-forward width {ffn} is split over ranks"
        yield Problem.of(cfg, f"{ffn_name} {size_name}", why, _divisor_of("it"))


def _divisor_of(what: str) -> str:
    return f"make the tensor-parallel size a divisor of {what}"


def _sequence_parallel(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    if not model.sequence_parallel:
        return
    size_name = f"{name}.tensor_model_parallel_size"
    if model.tensor_model_parallel_size == 1:
        yield Problem.of(
            cfg,
            f"{name}.sequence_parallel {size_name}",
            "splits the sequence over tensor-parallel ranks, and there is one",
            f"set {name}.sequence_parallel=false",
        )
    if not divides(model.tensor_model_parallel_size, model.seq_length):
        yield Problem.of(
            cfg,
            f"{name}.seq_length {size_name} {name}.sequence_parallel",
            "the sequence is split over tensor-parallel ranks",
            "make its length a multiple of their number",
        )


def _context_parallel(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    if model.context_parallel_size > 1:
        yield Problem.of(
            cfg,
            f"{name}.context_parallel_size",
            "context parallelism needs TransformerEngine's attention, which the local layer spec does not have",
            f"set {name}.context_parallel_size=1",
        )


def _pipeline_parallel(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    stages = model.pipeline_model_parallel_size
    if not divides(stages, model.num_layers):
        yield Problem.of(
            cfg,
            f"{name}.num_layers {name}.pipeline_model_parallel_size",
            "megatron-core gives each pipeline stage the same number of layers",
            "make the stages a divisor of the layers",
        )


def _virtual_pipeline(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    chunks, stages = model.virtual_pipeline_model_parallel_size, model.pipeline_model_parallel_size
    chunks_name, stages_name = f"{name}.virtual_pipeline_model_parallel_size", f"{name}.pipeline_model_parallel_size"
    if chunks is None:
        return
    if stages == 1:
        yield Problem.of(cfg, f"{chunks_name} {stages_name}", "needs more than one stage", f"set {chunks_name}=null")
    elif divides(stages, model.num_layers) and not divides(stages * chunks, model.num_layers):
        yield Problem.of(
            cfg,
            f"{name}.num_layers {stages_name} {chunks_name}",
            f"the layers must split evenly into {stages} x {chunks} chunks",
            f"set {chunks_name}=null or a divisor of {model.num_layers // stages}",
        )
