"""Where the weights come from: never from nowhere, never from two places."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.checkpoints.contents import architecture_of, find_checkpoint
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider, explicit
from megatron_kd.config.model_parts import WEIGHT_SHAPES
from megatron_kd.config.problem import line, value_of
from megatron_kd.config.values import show
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import is_huggingface_folder, read_architecture
from megatron_kd.huggingface.folder import folder_problems

_MAKE = (
    "a checkpoint folder of a megatron_kd run, runs/NAME/checkpoints/iter_0001000 (for the tiny recipes made by "
    "`make distill` or `torchrun recipes/tiny/pretrain_tiny.py`)"
)


def weight_problems(cfg: ConfigContainer) -> Iterator[str]:
    """Missing, doubled or absent weights of student and teacher. A run that resumes names them too."""
    if cfg.model.checkpoint is not None:
        yield line(cfg, "model.checkpoint", "the student's weights are given as checkpoint.pretrained_checkpoint=DIR")
    yield from _one_origin(cfg, "the student", "checkpoint.pretrained_checkpoint", "model")
    if cfg.models.teacher is not None:
        yield from _one_origin(cfg, "the teacher", "model.teacher.checkpoint", "model.teacher")
    for name, model in cfg.models.by_field():
        if model.hf_path is not None:
            yield from _huggingface(cfg, name, model)


def _one_origin(cfg: ConfigContainer, who: str, folder_name: str, model: str) -> Iterator[str]:
    names = [folder_name, f"{model}.init", f"{model}.hf_path"]
    given = [name for name in names if value_of(cfg, name) is not None]
    copied = (
        ", or model.init=from_teacher from the teacher's layers"
        if cfg.models.teacher is not None and who == "the student"
        else ""
    )
    if not given:
        misplaced = who == "the student" and cfg.model.checkpoint is not None  # said above
        if not misplaced:
            yield line(
                cfg,
                " ".join(names[:2]),
                f"{who} has no weights; set {folder_name} to {_MAKE}, {model}.hf_path to a Hugging Face folder, or "
                f"{model}.init=random to start from random ones{copied}",
            )
    elif len(given) > 1:
        yield line(cfg, " ".join(given), f"{who} has weights from two places; leave one out")
    elif given == [folder_name] and (why := _no_checkpoint(value_of(cfg, folder_name), f"{model}.hf_path")):
        yield line(cfg, folder_name, f"{why}, or set it to null and {model}.init=random")
    elif given == [folder_name]:
        yield from _other_sizes(cfg, folder_name, model)


def _other_sizes(cfg: ConfigContainer, folder_name: str, model: str) -> Iterator[str]:
    """Sizes that the checkpoint's own configuration gives otherwise. Its tensors are compared when they are read."""
    try:
        saved = architecture_of(value_of(cfg, folder_name), folder_name)
    except InputError:
        return  # of another Megatron program, which does not say
    wanted: GPTModelProvider = value_of(cfg, model)
    if min(saved.num_attention_heads, wanted.num_attention_heads) < 1:
        return  # `ranges` reports it
    saved, wanted = explicit(saved), explicit(wanted)
    for name in WEIGHT_SHAPES:
        size = getattr(saved, name)
        if getattr(wanted, name) != size:
            why = (
                f"the checkpoint's model has {show(size)}; set {model}.{name}={show(size)}, or give another checkpoint"
            )
            yield line(cfg, f"{model}.{name} {folder_name}", why)


def _no_checkpoint(folder: str, hf_field: str) -> str | None:
    """Why there are no weights to read in `folder`, and where they may be; None where there are."""
    if not os.path.isdir(folder):
        return f"there is no such folder; give {_MAKE}"
    try:
        find_checkpoint(folder, "")
    except InputError:
        if is_huggingface_folder(folder):
            return f"is a Hugging Face folder; set {hf_field} to it and this to null"
        return f"there is no checkpoint in this folder; give {_MAKE}"
    return None


def _huggingface(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[str]:
    """Weights that are not there or not whole, and sequences that the model cannot see all of."""
    try:
        window = read_architecture(model.hf_path or "").window
    except InputError:
        return  # said when the configuration was made
    if window is not None and window < cfg.model.seq_length:
        why = (
            f"layers of this model attend to {window} tokens at most (sliding_window), which is not served; set "
            f"model.seq_length={window} or less"
        )
        yield line(cfg, f"{name}.hf_path model.seq_length", why)
    for problem in folder_problems(Path(model.hf_path or ""), model):
        yield line(cfg, f"{name}.hf_path", problem)
