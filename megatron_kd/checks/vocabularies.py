"""Numbers of token ids that do not fit each other: those of the tokenizer, the models and their losses.

What the tokenizer's number decides is checked again when the tokenizer has been loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import shared_vocab_size, teacher_vocab_size, true_vocab_size, vocab_width
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem


def vocabulary_problems(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[Problem]:
    """Problems of all vocabularies; with an unknown tokenizer, those that hold for every one."""
    yield from _too_few_ids(cfg, tokenizer_vocab_size)
    yield from _width(cfg, tokenizer_vocab_size)
    yield from _top_k(cfg, tokenizer_vocab_size)
    yield from _copied_embedding(cfg, tokenizer_vocab_size)


def _too_few_ids(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[Problem]:
    """A model must have an id for each of the tokenizer's: both models read the same tokens."""
    ids = tokenizer_vocab_size
    if ids is None and cfg.tokenizer.tokenizer_type == "null":
        ids = cfg.tokenizer.vocab_size
    for name, model in cfg.models.by_field():
        own = teacher_vocab_size(cfg) if name == "model.teacher" else model.vocab_size
        if own is not None and ids is not None and ids > own > 0:
            null = f"{name}.vocab_size=null to take it"
            cure = _own_tokenizer(cfg, model) or f"set {name}.vocab_size to at least {ids}, or {null}"
            yield Problem.of(cfg, f"{name}.vocab_size", f"the tokenizer has {ids} ids", cure)


def _own_tokenizer(cfg: ConfigContainer, model: GPTModelProvider) -> str | None:
    """The cure where the sizes are those of weights, which have as many ids as they have."""
    if model.hf_path is None:
        return None
    if cfg.tokenizer.tokenizer_model == model.hf_path or not os.path.exists(f"{model.hf_path}/tokenizer.json"):
        return f"give the tokenizer of the model in {model.hf_path}, which has at most as many ids"
    return f"set tokenizer.tokenizer_model=null to take the tokenizer of {model.hf_path}"


def _width(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[Problem]:
    shards = cfg.model.tensor_model_parallel_size
    multiple = cfg.model.make_vocab_size_divisible_by
    if shards < 1 or any(model.make_vocab_size_divisible_by < 1 for _, model in cfg.models.by_field()):
        return  # `ranges` reports it
    width = vocab_width(cfg, tokenizer_vocab_size)
    if width is not None and width % shards:
        why = f"the vocabulary is built {width} wide, which tensor parallelism must divide"
    elif width is None and multiple % shards:
        why = "tensor parallelism must divide the vocabulary's width, a multiple of this number"
    else:
        return
    fields = "model.make_vocab_size_divisible_by model.tensor_model_parallel_size"
    yield Problem.of(cfg, fields, why, f"set model.make_vocab_size_divisible_by={math.lcm(multiple, shards)}")


def _top_k(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[Problem]:
    """The models are compared over the ids that both have."""
    shared, kd = shared_vocab_size(cfg, tokenizer_vocab_size), cfg.models.kd
    if kd is not None and shared is not None and kd.logit_kl_topk is not None and kd.logit_kl_topk > shared > 0:
        field = "model.kd_config.logit_kl_topk"
        cure = f"set {field} to at most {shared}, or {field}=null to compare all of them"
        yield Problem.of(cfg, field, f"student and teacher share {shared} ids", cure)


def _copied_embedding(cfg: ConfigContainer, tokenizer_vocab_size: int | None) -> Iterator[Problem]:
    if cfg.model.init != "from_teacher":
        return
    student, teacher = true_vocab_size(cfg, tokenizer_vocab_size), teacher_vocab_size(cfg, tokenizer_vocab_size)
    if student is not None and teacher is not None and student != teacher:
        fields = "model.init model.vocab_size model.teacher.vocab_size"
        why = f"the embedding is copied, which has {teacher} token ids"
        yield Problem.of(cfg, fields, why, f"set model.vocab_size={teacher}")
