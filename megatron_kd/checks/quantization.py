"""Checks for fake quantisation of the student: the shapes that it requires and the settings it does not support."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import Problem, divides

# Inputs of a weight's row that share a scale. They must lie on one rank, and fill their block.
_BLOCKS = {"int4_weight_only": 128, "nvfp4": 16}


def quantization_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems of `model.quantization`."""
    if (teacher := cfg.models.teacher) is not None and teacher.quantization is not None:
        cure = (
            "set model.teacher.quantization=null (model.quantization is the student's, and "
            "model.teacher_quantization=int8 keeps the teacher's weights small)"
        )
        yield Problem.of(cfg, "model.teacher.quantization", "a teacher computes in full precision", cure)
    yield from _blocks(cfg)
    if cfg.model.quantization == "nvfp4" and cfg.dist.distributed_backend == "gloo":
        yield Problem.of(
            cfg,
            "model.quantization dist.distributed_backend",
            "ModelOpt rounds to nvfp4 on CUDA devices only",
            "set model.quantization to int8, fp8 or int4_weight_only",
        )


def _blocks(cfg: ConfigContainer) -> Iterator[Problem]:
    block = _BLOCKS.get(cfg.model.quantization or "")
    if block is None:
        return
    shards = cfg.model.tensor_model_parallel_size
    for what, width, split in _input_widths(cfg.model):
        if not divides(block * (shards if split else 1), width):
            over_ranks = split and shards > 1
            yield Problem.of(
                cfg,
                "model.quantization model.tensor_model_parallel_size",
                f"scales are those of {block} inputs in a row, and {what} are {width}"
                + (f" over {shards} ranks" if over_ranks else ""),
                "choose another format" + (" or another tensor-parallel size" if over_ranks else ""),
            )


def _input_widths(model: GPTModelProvider) -> list[tuple[str, int, bool]]:
    """Inputs of a transformer layer's linear layers: name, width, and whether it is split over ranks."""
    return [
        ("hidden states", model.hidden_size, False),
        ("the outputs of attention", model.num_attention_heads * model.head_size, True),
        ("the feed-forward layer's inner states", model.ffn_size, True),
    ]
