"""Shapes that cannot be: heads, head sizes, rotary channels, recompute."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem, divides


def architecture_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems within one model, for the student and for the teacher."""
    for name, model in cfg.models.by_field():
        yield from _positions(cfg, name, model)
        yield from _heads(cfg, name, model)
        yield from _rotary(cfg, name, model)
        yield from _recompute(cfg, name, model)


def _positions(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    """Sequences, which both models read, longer than a model was made for; its scaled frequencies are in the number."""
    positions, longest = model.max_position_embeddings, cfg.model.seq_length
    if positions is not None and 0 < positions < longest:
        yield Problem.of(
            cfg,
            f"{name}.max_position_embeddings model.seq_length",
            "sequences are longer than the positions that the model was made for",
            f"set model.seq_length to {positions} or less, or {name}.max_position_embeddings={longest} to go beyond",
        )


def _heads(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    if not divides(model.query_groups, model.num_attention_heads):
        yield Problem.of(
            cfg,
            f"{name}.num_attention_heads {name}.num_query_groups",
            "heads must be a multiple of query groups",
            "make the groups a divisor of the heads",
        )
    if model.kv_channels is None and not divides(model.num_attention_heads, model.hidden_size):
        yield Problem.of(
            cfg,
            f"{name}.hidden_size {name}.num_attention_heads",
            "the hidden size must be a multiple of the heads",
            f"change one, or set {name}.kv_channels, a head's width",
        )


def _rotary(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    if model.position_embedding_type != "rope":
        if model.rope_scaling:
            yield Problem.of(
                cfg,
                f"{name}.rope_scaling {name}.position_embedding_type",
                "scales rotary embeddings only",
                f"set {name}.rope_scaling=false or {name}.position_embedding_type=rope",
            )
        return
    width, fields = model.kv_channels, f"{name}.kv_channels"
    if width is None:
        if model.num_attention_heads < 1 or model.hidden_size % model.num_attention_heads:
            return  # said already
        width = model.head_size
        fields = f"{name}.hidden_size {name}.num_attention_heads"
    rotary = int(width * model.rotary_percent)
    if rotary % 2:
        why = f"rotary embeddings turn pairs of channels, but {rotary} of a head's {width} channels are rotary"
        yield Problem.of(cfg, f"{fields} {name}.rotary_percent", why, "make that even")


def _recompute(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    granularity, method, layers = model.recompute_granularity, model.recompute_method, model.recompute_num_layers
    settings = f"{name}.recompute_granularity {name}.recompute_method {name}.recompute_num_layers"
    if granularity == "full":
        if method is None or layers is None:
            cure = f"set {name}.recompute_method=uniform (or block) and {name}.recompute_num_layers=1 (or more)"
            yield Problem.of(cfg, settings, "full recompute needs to know which layers", cure)
        stage = model.num_layers // max(model.pipeline_model_parallel_size, 1)
        if layers is not None and layers > stage >= 1:
            yield Problem.of(
                cfg,
                f"{name}.recompute_num_layers {name}.num_layers {name}.pipeline_model_parallel_size",
                f"a pipeline stage has only {stage} layers",
                f"set {name}.recompute_num_layers to at most {stage}",
            )
    elif method is not None or layers is not None:
        both = f"{name}.recompute_method=null {name}.recompute_num_layers=null"
        cure = f"set {both}, or {name}.recompute_granularity=full"
        yield Problem.of(cfg, settings, "method and layers belong to full recompute", cure)
