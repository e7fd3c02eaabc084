"""`ConfigContainer`: everything that says what a run is."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    DDPConfig,
    DistConfig,
    LoggerConfig,
    MixedPrecisionConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
)


@dataclass(kw_only=True)
class ConfigContainer:
    """One run. `model` is the student; a `GPTDistillationProvider` has a teacher, a plain provider has none."""

    model: GPTDistillationProvider | GPTModelProvider = field(default_factory=GPTModelProvider)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ddp: DDPConfig = field(default_factory=DDPConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    rng: RNGConfig = field(default_factory=RNGConfig)
    mixed_precision: MixedPrecisionConfig = field(default_factory=MixedPrecisionConfig)
