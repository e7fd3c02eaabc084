"""Small runs for the tests: a config in one call, and what a run of it reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
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

VOCAB = 250  # not a multiple of 128: there is always padding
GLOBAL_BATCH = 8

STUDENT = GPTModelProvider(
    num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
    seq_length=16, vocab_size=VOCAB, init="random", init_method_std=0.3,
)  # fmt: skip
TEACHER = replace(STUDENT, num_layers=4, hidden_size=48, ffn_hidden_size=96)


def tiny_config(
    run_dir: Path,
    *,
    tp: int = 1,
    pp: int = 1,
    sequence_parallel: bool = False,
    micro_batch_size: int = 8,
    iters: int = 5,
    kd: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    distilled: bool = True,
    precision: str = "fp32",
    distributed_optimizer: bool = True,
    overlap: bool = False,
    **checkpoint: Any,
) -> ConfigContainer:
    """A run on mock data with a global batch of 8 sequences; a distillation unless `distilled` is false."""
    layout: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "sequence_parallel": sequence_parallel,
    }
    model = replace(STUDENT, **layout, **(student or {}))
    if distilled:
        model = GPTDistillationProvider.from_student(
            model,
            teacher=replace(TEACHER, **layout, **(teacher or {})),
            kd_config=ModelOptDistillConfig(**(kd or {})),
        )
    return ConfigContainer(
        model=model,
        train=TrainConfig(train_iters=iters, global_batch_size=GLOBAL_BATCH, micro_batch_size=micro_batch_size),
        validation=ValidationConfig(eval_interval=0, eval_iters=1),
        # Adam's first step is g / (|g| + eps): with the usual 1e-8, the rounding of a gradient of 1e-7 shows in the
        # weights, and layouts that agree to 1e-8 in every gradient part at the second step.
        optimizer=OptimizerConfig(lr=1e-2, adam_eps=1e-5),
        scheduler=SchedulerConfig(lr_decay_style="constant"),
        ddp=DDPConfig(
            use_distributed_optimizer=distributed_optimizer, overlap_grad_reduce=overlap, overlap_param_gather=overlap
        ),
        dataset=DatasetConfig(mock=True),
        tokenizer=TokenizerConfig(tokenizer_type="null", vocab_size=VOCAB),
        checkpoint=CheckpointConfig(**{"save": False, **checkpoint}),
        logger=LoggerConfig(run_dir=str(run_dir), tensorboard=False, progress="off"),
        mixed_precision=MixedPrecisionConfig(precision=precision),  # type: ignore[arg-type]
    )


def train_and_read(cfg: ConfigContainer, *hooks: Any) -> list[dict[str, Any]]:
    """On a rank: run `cfg`, and return the records of its metrics.jsonl (what rank 0 wrote)."""
    import torch.distributed as dist

    from megatron_kd.training.train import train

    train(cfg, hooks)
    dist.barrier()  # another rank may be done before rank 0 has written its last line
    return read_metrics(Path(cfg.logger.run_dir))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def metrics_of(record: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a validation line, without what says which line it is."""
    which = ("step", "split", "timestamp", "consumed_samples", "consumed_tokens")
    return {name: value for name, value in record.items() if name not in which}
