"""`ConfigContainer`: everything that says what a run is."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
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


@dataclass(frozen=True)
class Models:
    """The models of a run and the losses between them.

    Attributes:
        student: trained. Its provider may be a `GPTDistillationProvider`, of which only the student's count.
        teacher: frozen; None in a run on labels.
        kd: None in a run on labels.
    """

    student: GPTModelProvider
    teacher: GPTModelProvider | None = None
    kd: ModelOptDistillConfig | None = None

    def by_field(self) -> list[tuple[str, GPTModelProvider]]:
        """The dotted name of each model's section and its provider, the student first."""
        found = [("model", self.student)]
        if self.teacher is not None:
            found.append(("model.teacher", self.teacher))
        return found


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

    @property
    def distillation(self) -> GPTDistillationProvider | None:
        """`model` where it has a teacher, None where it has none. Nothing else in the package asks for its class."""
        return self.model if isinstance(self.model, GPTDistillationProvider) else None

    @property
    def models(self) -> Models:
        """The student, and the teacher and the losses where there are any."""
        model = self.distillation
        return Models(self.model) if model is None else Models(model, model.teacher, model.kd_config)
