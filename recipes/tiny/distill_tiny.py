"""Distil a tiny GPT on real text, on any machine: `torchrun --nproc_per_node=2 recipes/tiny/distill_tiny.py`."""

from dataclasses import replace

from tiny_parts import (
    SEED,
    STUDENT,
    STUDENT_CHECKPOINT,
    STUDENT_OPTIMIZER,
    STUDENT_SCHEDULE,
    STUDENT_TRAIN,
    TEACHER,
    TEACHER_RUN,
    TEXT,
    TOKENIZER,
    VALIDATION,
)

from megatron_kd import ConfigContainer, GPTDistillationProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import LoggerConfig


def recipe() -> ConfigContainer:
    """The tiny teacher into the tiny student."""
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            replace(STUDENT, init="random"),
            teacher=replace(TEACHER, checkpoint=TEACHER_RUN),
            kd_config=ModelOptDistillConfig(),
        ),
        train=STUDENT_TRAIN,
        validation=VALIDATION,
        optimizer=STUDENT_OPTIMIZER,
        scheduler=STUDENT_SCHEDULE,
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=STUDENT_CHECKPOINT,
        logger=LoggerConfig(run_dir="runs/tiny/distilled", log_interval=10),
        rng=SEED,
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
