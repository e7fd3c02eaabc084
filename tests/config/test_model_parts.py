"""Providers are composed of parts, and nothing of that shows in a configuration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_kd.checkpoints.contents import MANIFEST, RUN_CONFIG, architecture_of
from megatron_kd.checks import problems
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider, explicit
from megatron_kd.config.model_parts import (
    ONE_RANK,
    Architecture,
    FakeQuantization,
    ParallelLayout,
    Recompute,
    TeacherPlacement,
    WeightOrigin,
    names,
)
from tests.config.base import plain

# As run_config.yaml has listed them since the first version.
MODEL = (
    "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels seq_length vocab_size "
    "make_vocab_size_divisible_by share_embeddings_and_output_weights normalization layernorm_epsilon "
    "gated_linear_unit activation_func add_bias_linear add_qkv_bias qk_layernorm position_embedding_type rotary_base "
    "rotary_percent rope_scaling rope_scaling_factor attention_dropout hidden_dropout init_method_std "
    "max_position_embeddings tensor_model_parallel_size pipeline_model_parallel_size "
    "virtual_pipeline_model_parallel_size context_parallel_size sequence_parallel recompute_granularity "
    "recompute_method recompute_num_layers quantization quantization_calibration_batches init checkpoint hf_path"
)
DISTILLATION = (
    "teacher kd_config teacher_device_strategy teacher_rank share_teacher teacher_dtype teacher_quantization "
    "teacher_micro_batch_size"
)

# A value, and another one that weights of the first do not fit.
WEIGHT_SHAPES: dict[str, tuple[Any, Any]] = {
    "num_layers": (4, 2),
    "hidden_size": (64, 128),
    "ffn_hidden_size": (128, 256),
    "num_attention_heads": (4, 2),
    "num_query_groups": (4, 2),
    "kv_channels": (16, 32),
    "gated_linear_unit": (True, False),
    "add_bias_linear": (False, True),
    "add_qkv_bias": (False, True),
    "qk_layernorm": (False, True),
}

# The same for values that do not shape weights but change what they compute, and for those that change neither.
COMPUTATION: dict[str, tuple[Any, Any]] = {
    "share_embeddings_and_output_weights": (False, True),
    "normalization": ("RMSNorm", "LayerNorm"),
    "layernorm_epsilon": (1e-5, 1e-6),
    "activation_func": ("silu", "relu"),
    "position_embedding_type": ("rope", "none"),
    "rotary_base": (1e4, 1e6),
    "rotary_percent": (1.0, 0.5),
    "rope_scaling": (True, False),
    "rope_scaling_factor": (8.0, 32.0),
    "quantization": (None, "int8"),
}
FREE: dict[str, tuple[Any, Any]] = {
    "num_layers": (4, 2),
    "seq_length": (64, 32),
    "vocab_size": (1000, 900),
    "make_vocab_size_divisible_by": (128, 64),
    "attention_dropout": (0.0, 0.1),
    "hidden_dropout": (0.0, 0.1),
    "init_method_std": (0.02, 0.01),
    "max_position_embeddings": (64, 128),
}
VALUES = WEIGHT_SHAPES | COMPUTATION | FREE


def test_the_order_of_fields_is_that_of_the_first_version() -> None:
    assert " ".join(names(GPTModelProvider)) == MODEL
    assert " ".join(names(GPTDistillationProvider)) == f"{MODEL} {DISTILLATION}"


def test_each_field_is_of_one_part() -> None:
    parts = (Architecture, ParallelLayout, Recompute, FakeQuantization, WeightOrigin)
    counts = Counter(name for part in parts for name in names(part))
    assert counts == Counter(names(GPTModelProvider))
    assert set(DISTILLATION.split()) - set(names(TeacherPlacement)) == {"teacher", "kd_config"}


def test_one_rank_holds_a_whole_copy() -> None:
    assert ONE_RANK == {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": False,
    }


def test_sizes_that_are_not_given_follow_from_others() -> None:
    model = GPTModelProvider(hidden_size=96, num_attention_heads=6)
    assert (model.query_groups, model.head_size, model.ffn_size, model.positions) == (6, 16, 384, 1024)
    written = GPTModelProvider(
        hidden_size=96,
        num_attention_heads=6,
        num_query_groups=2,
        kv_channels=32,
        ffn_hidden_size=100,
        max_position_embeddings=7,
    )
    assert (written.query_groups, written.head_size, written.ffn_size, written.positions) == (2, 32, 100, 7)
    assert explicit(written) == written
    sizes = explicit(model)
    assert (sizes.num_query_groups, sizes.kv_channels, sizes.ffn_hidden_size) == (6, 16, 384)


def _checkpoint(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")
    (folder / RUN_CONFIG).write_text(yaml.safe_dump({"model": values}))
    return folder


@pytest.mark.parametrize("name", VALUES)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path, name: str) -> None:
    own = {field: value for field, (value, _) in VALUES.items()}
    checkpoint = _checkpoint(tmp_path / "checkpoint", **own | {name: VALUES[name][1]})
    cfg = plain(**{f"model.{field}": value for field, value in own.items()} | {"model.init": None})
    cfg.checkpoint.pretrained_checkpoint = str(checkpoint)
    found = [str(problem) for problem in problems(cfg) if "the checkpoint's model has" in str(problem)]
    assert len(found) == (name in WEIGHT_SHAPES)
    assert all(problem.startswith(f"model.{name}=") for problem in found)


@pytest.mark.parametrize("name", VALUES)
def test_copied_layers_are_the_teachers_in_all_but_the_free_fields(name: str) -> None:
    assert VALUES.keys() == {*names(Architecture), "quantization"}
    teacher = GPTModelProvider(**{field: own for field, (own, _) in VALUES.items()}, init="random")
    student = replace(teacher, **{name: VALUES[name][1]}, init="from_teacher")
    cfg = plain()
    cfg.model = GPTDistillationProvider.from_student(student, teacher=teacher)
    refused = [str(problem) for problem in problems(cfg) if "whole layers are copied" in str(problem)]
    assert len(refused) == (name not in FREE)
    assert all(f"model.{name}=" in problem for problem in refused)


def test_a_checkpoint_says_what_the_model_is_and_nothing_of_the_run(tmp_path: Path) -> None:
    saved = {
        "num_layers": 3,
        "quantization": "int8",
        "rope_scaling": True,
        "tensor_model_parallel_size": 2,
        "recompute_granularity": "full",
        "init": "random",
        "quantization_calibration_batches": 3,
        "hf_path": "somewhere",
    }
    found = architecture_of(_checkpoint(tmp_path / "checkpoint", **saved))
    assert found == GPTModelProvider(num_layers=3, quantization="int8", rope_scaling=True)
