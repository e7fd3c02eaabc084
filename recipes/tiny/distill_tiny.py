"""Distil a tiny GPT, on text, on any machine: `torchrun --nproc_per_node=2 recipes/tiny/distill_tiny.py`."""

from dataclasses import replace

from tiny_parts import STUDENT, TEACHER, TEACHER_RUN, TEXT, TOKENIZER, VALIDATION

from megatron_kd import ConfigContainer, GPTDistillationProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import (
    CheckpointConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TrainConfig,
)


def recipe() -> ConfigContainer:
    """The tiny teacher into the tiny student."""
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            replace(STUDENT, init="random"),
            teacher=replace(TEACHER, checkpoint=TEACHER_RUN),
            kd_config=ModelOptDistillConfig(logit_kl_temperature=1.0),
        ),
        train=TrainConfig(train_iters=400, global_batch_size=16, micro_batch_size=8),
        validation=VALIDATION,
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=SchedulerConfig(lr_warmup_iters=20),
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=CheckpointConfig(save_interval=100, most_recent_k=2),
        logger=LoggerConfig(run_dir="runs/tiny/distilled", log_interval=10),
        rng=RNGConfig(seed=1),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
