"""`problems(cfg)`: everything about a configuration that cannot work, found before anything is started.

Each subject has a file. To add a check, write a generator of lines there; each line names the fields with their
values (`lines.line` does), says why they cannot be, and what cures it.
"""

from __future__ import annotations

from itertools import chain

from megatron_kd.checks.batch import batch_problems
from megatron_kd.checks.data_paths import data_problems
from megatron_kd.checks.kd_losses import distillation_problems
from megatron_kd.checks.model_sizes import architecture_problems
from megatron_kd.checks.parallel_layout import layout_problems
from megatron_kd.checks.quantization import quantization_problems
from megatron_kd.checks.ranges import range_problems
from megatron_kd.checks.schedules import (
    length_problems,
    optimizer_problems,
    output_problems,
    scheduler_problems,
)
from megatron_kd.checks.student_from_teacher import from_teacher_problems
from megatron_kd.checks.weight_origins import weight_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.placement.registry import placement_problems


def problems(cfg: ConfigContainer, world_size: int | None = None, tokenizer_vocab_size: int | None = None) -> list[str]:
    """Find every impossible value and every contradiction between values.

    Nothing is changed and nothing is started; the disk is looked at for files the configuration names. Types are
    `resolve`'s business and are taken to be right.

    Args:
        cfg: the configuration.
        world_size: number of ranks; None leaves out what depends on it.
        tokenizer_vocab_size: ids of the tokenizer, where it has been loaded; None leaves out what depends on it.

    Returns:
        one line for each problem, in a fixed order, none twice; empty if the configuration can run.
    """
    found = chain(
        range_problems(cfg),
        architecture_problems(cfg, tokenizer_vocab_size),
        layout_problems(cfg),
        quantization_problems(cfg),
        length_problems(cfg),
        batch_problems(cfg, world_size),
        distillation_problems(cfg, tokenizer_vocab_size),
        placement_problems(cfg, world_size),
        weight_problems(cfg),
        from_teacher_problems(cfg, tokenizer_vocab_size),
        data_problems(cfg),
        optimizer_problems(cfg),
        scheduler_problems(cfg),
        output_problems(cfg),
    )
    return list(dict.fromkeys(found))


def tokenizer_problems(cfg: ConfigContainer, tokenizer_vocab_size: int) -> list[str]:
    """The `problems` that show only when the tokenizer has been loaded and its number of ids is known."""
    known = set(problems(cfg))
    return [line for line in problems(cfg, tokenizer_vocab_size=tokenizer_vocab_size) if line not in known]
