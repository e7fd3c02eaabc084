"""Train the tiny student on labels alone: the baseline of distillation.

torchrun --nproc_per_node=2 recipes/tiny/pretrain_tiny_student.py
"""

from dataclasses import replace

from tiny_parts import (
    SEED,
    STUDENT,
    STUDENT_CHECKPOINT,
    STUDENT_OPTIMIZER,
    STUDENT_SCHEDULE,
    STUDENT_TRAIN,
    TEXT,
    TOKENIZER,
    VALIDATION,
)

from megatron_kd import ConfigContainer, main
from megatron_kd.config.sections import LoggerConfig


def recipe() -> ConfigContainer:
    """The student without its teacher: everything else is as in `distill_tiny.py`."""
    return ConfigContainer(
        model=replace(STUDENT, init="random"),
        train=STUDENT_TRAIN,
        validation=VALIDATION,
        optimizer=STUDENT_OPTIMIZER,
        scheduler=STUDENT_SCHEDULE,
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=STUDENT_CHECKPOINT,
        logger=LoggerConfig(run_dir="runs/tiny/labels", log_interval=10),
        rng=SEED,
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
