"""Distil Llama 3.1 70B into 8B on 8 machines of 8 GPUs.

torchrun --nnodes=8 --nproc_per_node=8 recipes/llama/distill_llama31_70b-8b.py
"""

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
from megatron_kd.models.llama import llama31_8b, llama31_70b


def recipe() -> ConfigContainer:
    """10,000 steps of 512 x 4096 tokens (21 billion) in bf16, from the weights and the text in data/llama31.

    The teacher gives no parallel sizes: `balanced` spreads one copy of it over all ranks.
    """
    return ConfigContainer(
        model=GPTDistillationProvider.from_student(
            llama31_8b(seq_length=4096, tensor_model_parallel_size=2, sequence_parallel=True),
            teacher=llama31_70b(seq_length=4096, checkpoint="data/llama31/70b"),
            kd_config=ModelOptDistillConfig(),
        ),
        train=TrainConfig(train_iters=10_000, global_batch_size=512, micro_batch_size=1),
        validation=ValidationConfig(eval_interval=500, eval_iters=4),
        optimizer=OptimizerConfig(lr=5e-5, min_lr=5e-6, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0),
        scheduler=SchedulerConfig(lr_decay_style="cosine", lr_warmup_fraction=0.02),
        ddp=DDPConfig(use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
        dataset=DatasetConfig(data_path=["data/llama31/text"], split="990,8,2", num_workers=2),
        tokenizer=TokenizerConfig(tokenizer_model="data/llama31/tokenizer"),
        checkpoint=CheckpointConfig(pretrained_checkpoint="data/llama31/8b", save_interval=500, most_recent_k=3),
        logger=LoggerConfig(run_dir="runs/llama31_70b-8b", log_interval=10),
        mixed_precision=MixedPrecisionConfig(precision="bf16"),
    )


if __name__ == "__main__":
    raise SystemExit(main(recipe))
