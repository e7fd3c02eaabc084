"""megatron_kd: tensor- and pipeline-parallel knowledge distillation of large language models.

The public names, imported on first use: describing and checking a run needs neither torch nor megatron-core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ConfigContainer": "megatron_kd.config.container",
    "GPTDistillationProvider": "megatron_kd.config.gpt_distillation",
    "GPTModelProvider": "megatron_kd.config.gpt_model",
    "Hook": "megatron_kd.training.hooks.hook",
    "ModelOptDistillConfig": "megatron_kd.config.kd_config",
    "distill": "megatron_kd.training.train",
    "main": "megatron_kd.entry",
    "pretrain": "megatron_kd.training.train",
}

if TYPE_CHECKING:
    from megatron_kd.config.container import ConfigContainer
    from megatron_kd.config.gpt_distillation import GPTDistillationProvider
    from megatron_kd.config.gpt_model import GPTModelProvider
    from megatron_kd.config.kd_config import ModelOptDistillConfig
    from megatron_kd.entry import main
    from megatron_kd.training.hooks.hook import Hook
    from megatron_kd.training.train import distill, pretrain

__all__ = [
    "ConfigContainer",
    "GPTDistillationProvider",
    "GPTModelProvider",
    "Hook",
    "ModelOptDistillConfig",
    "distill",
    "main",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
