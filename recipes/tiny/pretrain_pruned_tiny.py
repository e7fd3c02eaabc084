"""Train the pruned tiny student on labels alone: the baseline of its distillation.

torchrun --nproc_per_node=2 recipes/tiny/pretrain_pruned_tiny.py
"""

from tiny_parts import PRUNED, PRUNED_RUN, PRUNED_SCHEDULE, PRUNED_TRAIN, PRUNED_VALIDATION, SEED, TEXT, TOKENIZER

from megatron_kd import ConfigContainer, main
from megatron_kd.config.sections import CheckpointConfig, LoggerConfig, OptimizerConfig


def recipe() -> ConfigContainer:
    """The pruned student without its teacher: everything else is as in `distill_pruned_tiny.py`."""
    return ConfigContainer(
        model=PRUNED,
        train=PRUNED_TRAIN,
        validation=PRUNED_VALIDATION,
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=PRUNED_SCHEDULE,
        dataset=TEXT,
        tokenizer=TOKENIZER,
        checkpoint=CheckpointConfig(pretrained_checkpoint=PRUNED_RUN, most_recent_k=1),
        logger=LoggerConfig(run_dir="runs/tiny/pruned-labels", log_interval=10),
        rng=SEED,
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
