"""Distil Llama 3.2 3B into 1B: `torchrun --nproc_per_node=1 recipes/llama/distill_llama32_3b-1b.py`."""

from megatron_kd import ConfigContainer, GPTDistillationProvider, ModelOptDistillConfig, main
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    DDPConfig,
    LoggerConfig,
    MixedPrecisionConfig,
    OptimizerConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
)
from megatron_kd.models.llama import llama32_1b, llama32_3b


def recipe() -> ConfigContainer:
    """20,000 steps of 128 x 4096 tokens (10.5 billion) in bf16, from the weights and the text in data/llama32."""
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            llama32_1b(seq_length=4096),
            teacher=llama32_3b(seq_length=4096, checkpoint="data/llama32/3b"),
            kd_config=ModelOptDistillConfig(),
        ),
        train=TrainConfig(train_iters=20_000, global_batch_size=128, micro_batch_size=2),
        validation=ValidationConfig(eval_interval=500, eval_iters=8),
        optimizer=OptimizerConfig(lr=1e-4, min_lr=1e-5, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0),
        scheduler=SchedulerConfig(lr_decay_style="cosine", lr_warmup_fraction=0.02),
        ddp=DDPConfig(use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
        dataset=DatasetConfig(data_path=["data/llama32/text"], split="990,8,2", num_workers=2),
        tokenizer=TokenizerConfig(tokenizer_model="data/llama32/tokenizer"),
        checkpoint=CheckpointConfig(pretrained_checkpoint="data/llama32/1b", save_interval=500, most_recent_k=3),
        logger=LoggerConfig(run_dir="runs/llama32_3b-1b", log_interval=10),
        mixed_precision=MixedPrecisionConfig(precision="bf16"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
