"""Where the weights come from: never from nowhere, never from two places."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problems.lines import line, value_of
from megatron_kd.distillation.provider import GPTDistillationProvider

_MAKE = (
    "a checkpoint folder of a megatron_kd run, runs/NAME/checkpoints/iter_0001000 (for the tiny recipes made by "
    "`make distill` or `torchrun recipes/tiny/pretrain_tiny.py`)"
)
_ITERATION = re.compile(r"iter_\d{7,}")
_HUGGINGFACE = re.compile(r"config\.json|model_index\.json|.*\.safetensors|pytorch_model.*")


def weight_problems(cfg: ConfigContainer) -> Iterator[str]:
    """Missing, doubled or absent weights of student and teacher. A run that resumes names them too."""
    if cfg.model.checkpoint is not None:
        yield line(cfg, "model.checkpoint", "the student's weights are given as checkpoint.pretrained_checkpoint=DIR")
    yield from _one_origin(cfg, "the student", "checkpoint.pretrained_checkpoint", "model.init")
    if isinstance(cfg.model, GPTDistillationProvider):
        yield from _one_origin(cfg, "the teacher", "model.teacher.checkpoint", "model.teacher.init")


def _one_origin(cfg: ConfigContainer, who: str, folder_name: str, init_name: str) -> Iterator[str]:
    folder, init = value_of(cfg, folder_name), value_of(cfg, init_name)
    both = f"{folder_name} {init_name}"
    if folder is None and init is None:
        misplaced = who == "the student" and cfg.model.checkpoint is not None  # said above
        if not misplaced:
            yield line(
                cfg,
                both,
                f"{who} has no weights; set {folder_name} to {_MAKE}, or {init_name}=random to start from random ones",
            )
    elif folder is not None and init is not None:
        yield line(cfg, both, f"{who} has weights from two places; leave one out")
    elif folder is not None and (why := _no_checkpoint(folder)):
        yield line(cfg, folder_name, f"{why}; give {_MAKE}, or set it to null and {init_name}=random")


def _no_checkpoint(folder: str) -> str | None:
    """Why there are no weights to read in `folder`, by the names in it; None where there are."""
    if not os.path.isdir(folder):
        return "there is no such folder"
    names = os.listdir(folder)
    inside = [*names, *(os.listdir(os.path.join(folder, "checkpoints")) if "checkpoints" in names else [])]
    if "metadata.json" in inside or any(_ITERATION.fullmatch(name) for name in inside):
        return None
    if any(_HUGGINGFACE.fullmatch(name) for name in names):
        return "Hugging Face weights, which this folder has, cannot be imported yet"
    return "there is no checkpoint in this folder"
