"""A student that learns from a teacher: the student's own fields, plus the teacher and the losses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.model_parts import TeacherPlacement, names


@dataclass(kw_only=True)
class _Distilled:
    """The teacher and the losses, in the order of the configuration: before the teacher's placement."""

    teacher: GPTModelProvider = field(default_factory=GPTModelProvider)
    kd_config: ModelOptDistillConfig = field(default_factory=ModelOptDistillConfig)


@dataclass(kw_only=True)
class GPTDistillationProvider(TeacherPlacement, _Distilled, GPTModelProvider):
    """The student's fields, its `teacher`, `kd_config`, and where the teacher lives (`TeacherPlacement`).

    Attributes:
        teacher: the frozen model that the student learns from.
        kd_config: losses, their layers and their balance.
    """

    @property
    def student(self) -> GPTModelProvider:
        """The student alone, as a run on labels describes it."""
        return GPTModelProvider(**{name: getattr(self, name) for name in names(GPTModelProvider)})

    @classmethod
    def from_student(
        cls,
        student: GPTModelProvider,
        *,
        teacher: GPTModelProvider,
        kd_config: ModelOptDistillConfig | None = None,
        **placement: Any,
    ) -> GPTDistillationProvider:
        """Make a distillation out of two plain models; `placement` are this class's own fields, `teacher_*`."""
        values = {name: getattr(student, name) for name in names(GPTModelProvider)}
        return cls(**values, teacher=teacher, kd_config=kd_config or ModelOptDistillConfig(), **placement)

    @classmethod
    def from_hf(
        cls,
        student: GPTModelProvider | str | Path,
        *,
        teacher: GPTModelProvider | str | Path,
        kd_config: ModelOptDistillConfig | None = None,
        **settings: Any,
    ) -> GPTDistillationProvider:
        """Make a distillation out of Hugging Face folders, for either of which a provider may stand.

        Args:
            student, teacher: a folder with `config.json` and safetensors, or a provider.
            kd_config: the losses.
            settings: this class's own fields `teacher_*` and `share_teacher`; fields of a provider, as `seq_length`
                and the parallel layout, are for both models.

        Raises:
            ConfigError: a folder that is not there, or a model that is not supported.
        """
        from megatron_kd.huggingface.architecture import provider_from_hf

        both = {name: settings.pop(name) for name in names(GPTModelProvider) if name in settings}
        models = [
            replace(model, **both) if isinstance(model, GPTModelProvider) else provider_from_hf(model, **both)
            for model in (student, teacher)
        ]
        return cls.from_student(models[0], teacher=models[1], kd_config=kd_config, **settings)
