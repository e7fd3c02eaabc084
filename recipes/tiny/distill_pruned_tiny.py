"""Distil the tiny teacher into its pruned half: `torchrun --nproc_per_node=2 recipes/tiny/distill_pruned_tiny.py`.

Prune it first:

    megatron-kd prune runs/tiny/seed1/teacher --output runs/tiny/seed1/pruned --data data/stdlib/train \\
        --num-layers 3 --hidden-size 128 --ffn-hidden-size 384
"""

from dataclasses import replace

from tiny_parts import (
    PRUNED,
    PRUNED_RUN,
    PRUNED_SCHEDULE,
    PRUNED_TRAIN,
    PRUNED_VALIDATION,
    SEED,
    TEACHER,
    TEACHER_RUN,
    TEXT,
    TOKENIZER,
)

from megatron_kd import ConfigContainer, GPTDistillationProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import CheckpointConfig, LoggerConfig, OptimizerConfig


def recipe() -> ConfigContainer:
    """The tiny teacher into its pruned self."""
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            PRUNED,
            teacher=replace(TEACHER, checkpoint=TEACHER_RUN),
            kd_config=ModelOptDistillConfig(),
        ),
        train=PRUNED_TRAIN,
        validation=PRUNED_VALIDATION,
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=PRUNED_SCHEDULE,
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=CheckpointConfig(pretrained_checkpoint=PRUNED_RUN, most_recent_k=1),
        logger=LoggerConfig(run_dir="runs/tiny/pruned-distilled", log_interval=10),
        rng=SEED,
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
