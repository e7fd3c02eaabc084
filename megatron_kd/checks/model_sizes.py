"""Shapes that cannot be: heads, head sizes, vocabulary, recompute."""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import teacher_vocab_size, vocab_width
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import divides, line


def architecture_problems(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[str]:
    """Problems within one model, for the student and for the teacher."""
    for name, model in cfg.models.by_field():
        yield from _heads(cfg, name, model)
        yield from _rotary(cfg, name, model)
        yield from _recompute(cfg, name, model)
        yield from _vocabulary(cfg, name, tokenizer_vocab_size)
    yield from _vocabulary_width(cfg, tokenizer_vocab_size)


def _heads(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[str]:
    if not divides(model.query_groups, model.num_attention_heads):
        yield line(
            cfg,
            f"{name}.num_attention_heads {name}.num_query_groups",
            "heads must be a multiple of query groups; make the groups a divisor of the heads",
        )
    if model.kv_channels is None and not divides(model.num_attention_heads, model.hidden_size):
        yield line(
            cfg,
            f"{name}.hidden_size {name}.num_attention_heads",
            f"the hidden size must be a multiple of the heads; change one, or set {name}.kv_channels, a head's width",
        )


def _rotary(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[str]:
    if model.position_embedding_type != "rope":
        if model.rope_scaling:
            yield line(
                cfg,
                f"{name}.rope_scaling {name}.position_embedding_type",
                f"scales rotary embeddings only; set {name}.rope_scaling=false or {name}.position_embedding_type=rope",
            )
        return
    width, fields = model.kv_channels, f"{name}.kv_channels"
    if width is None:
        if model.num_attention_heads < 1 or model.hidden_size % model.num_attention_heads:
            return  # said already
        width = model.head_size
        fields = f"{name}.hidden_size {name}.num_attention_heads"
    if int(width * model.rotary_percent) % 2:
        yield line(
            cfg,
            f"{fields} {name}.rotary_percent",
            f"rotary embeddings turn pairs of channels, but {int(width * model.rotary_percent)} of a head's {width} "
            "channels are rotary; make that even",
        )


def _recompute(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[str]:
    granularity, method, layers = model.recompute_granularity, model.recompute_method, model.recompute_num_layers
    if granularity == "full":
        if method is None or layers is None:
            yield line(
                cfg,
                f"{name}.recompute_granularity {name}.recompute_method {name}.recompute_num_layers",
                f"full recompute needs to know which layers; set {name}.recompute_method=uniform (or block) and "
                f"{name}.recompute_num_layers=1 (or more)",
            )
        stage = model.num_layers // max(model.pipeline_model_parallel_size, 1)
        if layers is not None and layers > stage >= 1:
            yield line(
                cfg,
                f"{name}.recompute_num_layers {name}.num_layers {name}.pipeline_model_parallel_size",
                f"a pipeline stage has only {stage} layers; set {name}.recompute_num_layers to at most {stage}",
            )
    elif method is not None or layers is not None:
        yield line(
            cfg,
            f"{name}.recompute_granularity {name}.recompute_method {name}.recompute_num_layers",
            f"method and layers belong to full recompute; set both to null, or {name}.recompute_granularity=full",
        )


def _vocabulary(cfg: ConfigContainer, name: str, tokenizer_vocab_size: int | None) -> Iterator[str]:
    """A model must have an id for each of the tokenizer's: both models read the same tokens."""
    own = cfg.model.vocab_size if name == "model" else teacher_vocab_size(cfg)
    ids = tokenizer_vocab_size
    if ids is None and cfg.tokenizer.tokenizer_type == "null":
        ids = cfg.tokenizer.vocab_size
    if own is not None and ids is not None and ids > own > 0:
        yield line(
            cfg,
            f"{name}.vocab_size",
            f"the tokenizer has {ids} ids; set {name}.vocab_size to at least {ids}, or to null to take the tokenizer's",
        )


def _vocabulary_width(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[str]:
    shards = cfg.model.tensor_model_parallel_size
    multiple = cfg.model.make_vocab_size_divisible_by
    if shards < 1 or any(model.make_vocab_size_divisible_by < 1 for _, model in cfg.models.by_field()):
        return
    width = vocab_width(cfg, tokenizer_vocab_size)
    if width is not None and width % shards:
        what = f"the vocabulary is built {width} wide, which tensor parallelism must divide"
    elif width is None and multiple % shards:
        what = "tensor parallelism must divide the vocabulary's width, a multiple of this number"
    else:
        return
    yield line(
        cfg,
        "model.make_vocab_size_divisible_by model.tensor_model_parallel_size",
        f"{what}; set model.make_vocab_size_divisible_by={math.lcm(multiple, shards)}",
    )
