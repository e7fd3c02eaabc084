"""Settings that the Llama recipes share: text, schedule, data parallelism and checkpoints.

All Llama 3 models share one tokenizer, so every recipe reads the same tokenised text:

    megatron-kd preprocess --input corpus.jsonl --output-prefix data/llama3/text --tokenizer models/Llama-3.2-1B
"""

from megatron_kd import ConfigContainer
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    DDPConfig,
    LoggerConfig,
    MixedPrecisionConfig,
    OptimizerConfig,
    SchedulerConfig,
    ValidationConfig,
)

LLAMA3 = ConfigContainer(
    validation=ValidationConfig(eval_interval=500, eval_iters=8),
    scheduler=SchedulerConfig(lr_decay_style="cosine", lr_warmup_fraction=0.02),
    ddp=DDPConfig(use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True),
    dataset=DatasetConfig(data_path=["data/llama3/text"], split="990,8,2", num_workers=2),
    checkpoint=CheckpointConfig(save_interval=500, most_recent_k=3),
    mixed_precision=MixedPrecisionConfig(precision="bf16"),
)


def adam(lr: float) -> OptimizerConfig:
    """Adam, its learning rate decaying from `lr` to a tenth of it."""
    return OptimizerConfig(lr=lr, min_lr=lr / 10, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0)


def folder(name: str) -> LoggerConfig:
    """The run's folder, `runs/NAME`."""
    return LoggerConfig(run_dir=f"runs/{name}", log_interval=10)
