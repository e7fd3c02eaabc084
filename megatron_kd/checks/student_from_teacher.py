"""A student that starts from its teacher's layers: there is a teacher, and its layers are the student's."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import explicit
from megatron_kd.config.model_parts import FREE_IN_A_COPY, Architecture, names
from megatron_kd.config.problem import Problem
from megatron_kd.config.values import show

_PRUNE = "`megatron-kd prune` makes narrower students"
# A layer that is copied is the teacher's in all of these, and is trained without fake quantization.
_SAME = (*(name for name in names(Architecture) if name not in FREE_IN_A_COPY), "quantization")


def from_teacher_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems of `model.init=from_teacher`, and of asking for it where it means nothing."""
    model = cfg.distillation
    if model is not None and model.teacher.init == "from_teacher":
        why = "a teacher has no teacher to start from"
        yield Problem.of(cfg, "model.teacher.init", why, "set model.teacher.checkpoint")
    if cfg.model.init != "from_teacher":
        return
    if model is None:
        yield Problem.of(cfg, "model.init", "this run has no teacher", "set checkpoint.pretrained_checkpoint or random")
        return
    if model.num_layers > model.teacher.num_layers >= 1:
        cure = f"set model.num_layers to at most {model.teacher.num_layers}"
        yield Problem.of(
            cfg, "model.init model.num_layers model.teacher.num_layers", "layers are copied, not invented", cure
        )
    yield from _differences(cfg, model)


def _differences(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[Problem]:
    if min(model.num_attention_heads, model.teacher.num_attention_heads) < 1:
        return  # `ranges` reports it
    student, teacher = explicit(model), explicit(model.teacher)
    for name in _SAME:
        wanted = getattr(teacher, name)
        if getattr(student, name) != wanted:
            narrower = f", or to prune: {_PRUNE}" if name in ("hidden_size", "ffn_hidden_size") else ""
            yield Problem.of(
                cfg,
                f"model.init model.{name} model.teacher.{name}",
                "whole layers are copied, so all but their number is the teacher's",
                f"set model.{name}={show(wanted)}{narrower}",
            )
