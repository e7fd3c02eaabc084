"""Values derived from a configuration."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.derived import derived, padded_vocab_size, shared_vocab_size, vocab_width
from megatron_kd.errors import ConfigError
from tests.config.base import distillation, plain


@pytest.mark.parametrize(
    ("true_size", "multiple", "width"),
    [(1, 128, 128), (128, 128, 128), (129, 128, 256), (7, 1, 7), (128256, 128, 128256)],
)
def test_a_vocabulary_is_rounded_up(true_size: int, multiple: int, width: int) -> None:
    assert padded_vocab_size(true_size, multiple) == width


def test_everything_of_a_distillation() -> None:
    config = distillation(
        model__tensor_model_parallel_size=2,
        train__global_batch_size=16,
        logger__run_dir="runs/x",
        mixed_precision__precision="bf16",
        model__teacher_dtype="float32",
        scheduler__end_weight_decay=0.1,
    )
    values = derived(config, world_size=4)
    assert values.world_size == 4
    assert values.data_parallel_size == 2
    assert values.num_microbatches == 4
    assert (values.true_vocab_size, values.padded_vocab_size) == (1000, 1024)
    assert values.lr_decay_iters == 1000
    assert (values.start_weight_decay, values.end_weight_decay) == (0.01, 0.1)
    assert values.data_seed == 1234
    assert (values.student_dtype, values.teacher_dtype) == ("bfloat16", "float32")
    assert values.run_dir == Path("runs/x")
    assert values.run_config_file == Path("runs/x/run_config.yaml")
    assert values.checkpoints_dir == Path("runs/x/checkpoints")
    assert values.tensorboard_dir == Path("runs/x/tensorboard")
    assert values.metrics_file == Path("runs/x/metrics.jsonl")
    with pytest.raises(FrozenInstanceError):
        values.world_size = 1  # type: ignore[misc]


def test_own_values_win_over_fallbacks() -> None:
    values = derived(plain(dataset__random_seed=0, scheduler__lr_decay_iters=7), 1)
    assert values.data_seed == 0
    assert values.lr_decay_iters == 7
    assert values.teacher_dtype is None
    assert derived(distillation(), 1).teacher_dtype == "float32"


@pytest.mark.parametrize(
    ("edits", "iterations"),
    [
        ({}, 0),
        ({"lr_warmup_iters": 30}, 30),
        ({"lr_warmup_iters": 0, "lr_warmup_fraction": 0.5}, 0),
        ({"lr_warmup_fraction": 0.25}, 250),
        ({"lr_warmup_fraction": 0.25, "lr_decay_iters": 11}, 2),
    ],
)
def test_the_warm_up_is_given_in_iterations_or_as_a_share(edits: dict[str, Any], iterations: int) -> None:
    config = plain(**{f"scheduler__{name}": value for name, value in edits.items()})
    assert derived(config, 1).lr_warmup_iters == iterations


@pytest.mark.parametrize(
    ("edits", "tokenizer", "width"),
    [
        ({"model__vocab_size": None}, 500, 512),
        ({"model__vocab_size": None}, None, None),
        ({"model__vocab_size": 1000}, 500, 1024),
        ({"model__vocab_size": None, "tokenizer__tokenizer_type": "null", "tokenizer__vocab_size": 300}, None, 384),
        ({"model__vocab_size": 1000, "model__make_vocab_size_divisible_by": 1}, None, 1000),
    ],
)
def test_where_the_vocabulary_comes_from(edits: dict[str, Any], tokenizer: int | None, width: int | None) -> None:
    assert vocab_width(plain(**edits), tokenizer) == width


def test_both_heads_have_the_larger_width() -> None:
    config = distillation(model__make_vocab_size_divisible_by=1, model__teacher__make_vocab_size_divisible_by=256)
    assert derived(config, 1).padded_vocab_size == 1024
    config = distillation(model__make_vocab_size_divisible_by=512, model__teacher__make_vocab_size_divisible_by=1)
    assert derived(config, 1).padded_vocab_size == 1024
    assert vocab_width(distillation(model__vocab_size=None, model__teacher__vocab_size=None), 77) == 128


@pytest.mark.parametrize(("teacher", "shared", "width"), [(900, 900, 1024), (1030, 1000, 1152), (None, 1000, 1024)])
def test_each_model_has_its_own_ids_and_both_one_width(teacher: int | None, shared: int, width: int) -> None:
    config = distillation(model__teacher__vocab_size=teacher)
    values = derived(config, 1, tokenizer_vocab_size=1000)
    assert (values.true_vocab_size, values.teacher_vocab_size) == (1000, teacher or 1000)
    assert shared_vocab_size(config, 1000) == shared
    assert values.padded_vocab_size == width
    assert derived(plain(), 1).teacher_vocab_size is None


def test_an_unknown_vocabulary_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"set model\.vocab_size"):
        derived(plain(model__vocab_size=None), 1)
