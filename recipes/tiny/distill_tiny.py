"""Distil a tiny GPT, on text, on any machine: `torchrun --nproc_per_node=2 recipes/tiny/distill_tiny.py`."""

from megatron_kd import ConfigContainer, GPTDistillationProvider, GPTModelProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    LoggerConfig,
    OptimizerConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
)


def recipe() -> ConfigContainer:
    """A teacher of 4 x 192 and a student of 2 x 96, on the standard library's own sources."""
    teacher = GPTModelProvider(
        num_layers=4, hidden_size=192, num_attention_heads=4, ffn_hidden_size=512, seq_length=128,
        checkpoint="runs/tiny/teacher",
    )  # fmt: skip
    student = GPTModelProvider(
        num_layers=2, hidden_size=96, num_attention_heads=4, ffn_hidden_size=256, seq_length=128, init="random"
    )
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            student, teacher=teacher, kd_config=ModelOptDistillConfig(logit_kl_temperature=1.0)
        ),
        train=TrainConfig(train_iters=400, global_batch_size=16, micro_batch_size=16),
        validation=ValidationConfig(eval_interval=100, eval_iters=16),
        optimizer=OptimizerConfig(lr=4e-3),
        scheduler=SchedulerConfig(lr_warmup_iters=20),
        dataset=DatasetConfig(train_data_path=["data/stdlib/train"], valid_data_path=["data/stdlib/valid"]),
        tokenizer=TokenizerConfig(tokenizer_model="data/stdlib/tokenizer"),
        checkpoint=CheckpointConfig(save_interval=100),
        logger=LoggerConfig(run_dir="runs/tiny/distilled", log_interval=10),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
