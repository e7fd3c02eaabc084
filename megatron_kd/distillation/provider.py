"""A student that learns from a teacher: the student's own fields, plus the teacher and the losses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.models.provider import GPTModelProvider


@dataclass(kw_only=True)
class GPTDistillationProvider(GPTModelProvider):
    """The student's fields, its `teacher`, and `kd_config`.

    `teacher_dtype` is the teacher's own precision (None: the student's compute precision).
    """

    teacher: GPTModelProvider = field(default_factory=GPTModelProvider)
    kd_config: ModelOptDistillConfig = field(default_factory=ModelOptDistillConfig)
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @classmethod
    def from_student(
        cls,
        student: GPTModelProvider,
        *,
        teacher: GPTModelProvider,
        kd_config: ModelOptDistillConfig | None = None,
        teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> GPTDistillationProvider:
        """Make a distillation out of two plain models."""
        values = {f.name: getattr(student, f.name) for f in fields(GPTModelProvider)}
        return cls(
            **values,
            teacher=teacher,
            kd_config=kd_config or ModelOptDistillConfig(),
            teacher_dtype=teacher_dtype,
        )
