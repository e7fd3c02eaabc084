"""Train the tiny teacher on real text: `torchrun --nproc_per_node=2 recipes/tiny/pretrain_tiny.py`."""

from dataclasses import replace

from tiny_parts import SEED, TEACHER, TEACHER_RUN, TEXT, TOKENIZER, VALIDATION

from megatron_kd import ConfigContainer, main
from megatron_kd.config.sections import CheckpointConfig, LoggerConfig, OptimizerConfig, SchedulerConfig, TrainConfig


def recipe() -> ConfigContainer:
    """The teacher, on labels."""
    return ConfigContainer(
        model=replace(TEACHER, init="random"),
        train=TrainConfig(train_iters=600, global_batch_size=16, micro_batch_size=8),
        validation=replace(VALIDATION, eval_interval=200),
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=SchedulerConfig(lr_warmup_fraction=0.25),
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=CheckpointConfig(save_interval=200, most_recent_k=2),
        logger=LoggerConfig(run_dir=TEACHER_RUN, log_interval=10),
        rng=SEED,
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
