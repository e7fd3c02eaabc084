"""A student that learns from a teacher: the student's own fields, plus the teacher and the losses."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig


@dataclass(kw_only=True)
class GPTDistillationProvider(GPTModelProvider):
    """The student's fields, its `teacher`, `kd_config`, and where the teacher lives.

    Attributes:
        teacher: the frozen model that is learnt from.
        kd_config: losses, their layers and their balance.
        teacher_device_strategy: `colocated` shards the teacher like the student, in the student's own pipeline;
            `balanced` spreads it over all ranks in a layout of its own; `gpu0` keeps it on `teacher_rank` alone;
            `cpu` keeps it in host memory; `auto` takes the fastest of these that fits.
        teacher_rank: the rank that holds the teacher under `gpu0`.
        share_teacher: under `cpu`, one copy a machine, shared by its ranks; otherwise one copy a rank.
        teacher_dtype: the teacher's own precision (None: the student's compute precision).
        teacher_quantization: `int8` keeps the teacher's matrices as int8 with a scale a row; computation is in
            `teacher_dtype`.
        teacher_micro_batch_size: sequences of one teacher forward, outside `colocated` (None: the student's). The
            teacher keeps no activations, so it may be larger.
    """

    teacher: GPTModelProvider = field(default_factory=GPTModelProvider)
    kd_config: ModelOptDistillConfig = field(default_factory=ModelOptDistillConfig)
    teacher_device_strategy: Literal["auto", "colocated", "balanced", "gpu0", "cpu"] = "auto"
    teacher_rank: int = 0
    share_teacher: bool = True
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    teacher_quantization: Literal["int8"] | None = None
    teacher_micro_batch_size: int | None = None

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
        values = {f.name: getattr(student, f.name) for f in fields(GPTModelProvider)}
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
            ConfigError: a folder that is not there, or a model that is not served.
        """
        from megatron_kd.huggingface.architecture import provider_from_hf

        both = {f.name: settings.pop(f.name) for f in fields(GPTModelProvider) if f.name in settings}
        models = [
            replace(model, **both) if isinstance(model, GPTModelProvider) else provider_from_hf(model, **both)
            for model in (student, teacher)
        ]
        return cls.from_student(models[0], teacher=models[1], kd_config=kd_config, **settings)
