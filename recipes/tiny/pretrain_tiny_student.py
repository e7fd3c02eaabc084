"""Train the tiny student on labels alone: what `distill_tiny.py` is measured against.

torchrun --nproc_per_node=2 recipes/tiny/pretrain_tiny_student.py
"""

from dataclasses import replace

from tiny_parts import STUDENT, TEXT, TOKENIZER, VALIDATION

from megatron_kd import ConfigContainer, main
from megatron_kd.config.sections import (
    CheckpointConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TrainConfig,
)


def recipe() -> ConfigContainer:
    """The student without its teacher: everything else is as in `distill_tiny.py`."""
    return ConfigContainer(
        model=replace(STUDENT, init="random"),
        train=TrainConfig(train_iters=400, global_batch_size=16, micro_batch_size=8),
        validation=VALIDATION,
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=SchedulerConfig(lr_warmup_iters=20),
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=CheckpointConfig(save_interval=100, most_recent_k=2),
        logger=LoggerConfig(run_dir="runs/tiny/labels", log_interval=10),
        rng=RNGConfig(seed=1),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
