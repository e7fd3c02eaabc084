"""Where the weights come from: never from nowhere, never from two places."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.checkpoints.contents import architecture_of, find_checkpoint
from megatron_kd.checks.one_of import keep_one
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_model import GPTModelProvider, explicit
from megatron_kd.config.hub_names import absent, looks_like_hub_name
from megatron_kd.config.model_parts import WEIGHT_SHAPES
from megatron_kd.config.problem import Problem, value_of
from megatron_kd.config.values import show
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import is_huggingface_folder, read_architecture
from megatron_kd.huggingface.folder import folder_problems
from megatron_kd.huggingface.other_folders import what_else

_MAKE = (
    "a checkpoint folder of a megatron_kd run, runs/NAME/checkpoints/iter_0001000 (for the tiny recipes made by "
    "`make distill` or `torchrun recipes/tiny/pretrain_tiny.py`)"
)


def weight_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Missing, doubled or absent weights of student and teacher. A run that resumes names them too."""
    if cfg.model.checkpoint is not None:
        why = "the student's weights have a field of their own"
        yield Problem.of(cfg, "model.checkpoint", why, "set checkpoint.pretrained_checkpoint=DIR model.checkpoint=null")
    yield from _one_origin(cfg, "the student", "checkpoint.pretrained_checkpoint", "model")
    if cfg.models.teacher is not None:
        yield from _one_origin(cfg, "the teacher", "model.teacher.checkpoint", "model.teacher")
    for name, model in cfg.models.by_field():
        if model.hf_path is not None:
            yield from _huggingface(cfg, name, model)


def _one_origin(cfg: ConfigContainer, who: str, folder_name: str, model: str) -> Iterator[Problem]:
    names = [folder_name, f"{model}.init", f"{model}.hf_path"]
    given = [name for name in names if value_of(cfg, name) is not None]
    if len(given) > 1:
        cure = keep_one([f"{name}=null" for name in given])
        yield Problem.of(cfg, " ".join(given), f"{who} has weights from two places", cure)
    elif not given:
        misplaced = who == "the student" and cfg.model.checkpoint is not None  # reported above
        if not misplaced:
            cure = _ways_to_weights(cfg, folder_name, model)
            yield Problem.of(cfg, " ".join(names[:2]), f"{who} has no weights", cure)
    elif given == [folder_name]:
        yield from _checkpoint(cfg, folder_name, model)


def _ways_to_weights(cfg: ConfigContainer, folder_name: str, model: str) -> str:
    copied = cfg.models.teacher is not None and model == "model"
    return (
        f"set {folder_name} to {_MAKE}, {model}.hf_path to a Hugging Face folder, or {model}.init=random to start from "
        "random ones" + (", or model.init=from_teacher from the teacher's layers" if copied else "")
    )


def _checkpoint(cfg: ConfigContainer, folder_name: str, model: str) -> Iterator[Problem]:
    folder = value_of(cfg, folder_name)
    otherwise = f", or set {folder_name}=null {model}.init=random"
    if not os.path.isdir(folder):
        why, cure = "there is no such folder", f"give {_MAKE}{otherwise}"
        if looks_like_hub_name(folder):
            why, download = absent(folder)
            cure = f"{download} as {model}.hf_path, or {cure}"
        yield Problem.of(cfg, folder_name, why, cure)
        return
    try:
        find_checkpoint(folder, "")
    except InputError:
        if is_huggingface_folder(folder):
            cure = f"set {folder_name}=null {model}.hf_path={show(folder)}{otherwise}"
            yield Problem.of(cfg, folder_name, "is a Hugging Face folder", cure)
        else:
            cure = what_else(Path(folder)) or f"give {_MAKE}{otherwise}"
            yield Problem.of(cfg, folder_name, "there is no checkpoint in this folder", cure)
        return
    yield from _other_sizes(cfg, folder_name, model)


def _other_sizes(cfg: ConfigContainer, folder_name: str, model: str) -> Iterator[Problem]:
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
            cure = f"set {model}.{name}={show(size)}, or give another checkpoint"
            yield Problem.of(cfg, f"{model}.{name} {folder_name}", f"the checkpoint's model has {show(size)}", cure)


def _huggingface(cfg: ConfigContainer, name: str, model: GPTModelProvider) -> Iterator[Problem]:
    """Weights that are not there or not whole, and sequences that the model cannot see all of."""
    try:
        window = read_architecture(model.hf_path or "").window
    except InputError:
        return  # reported when the configuration was made
    if window is not None and window < cfg.model.seq_length:
        why = f"layers of this model attend to {window} tokens at most (sliding_window), which is not supported"
        cure = f"set model.seq_length={window} or less"
        yield Problem.of(cfg, f"{name}.hf_path model.seq_length", why, cure)
    for problem in folder_problems(Path(model.hf_path or ""), model):
        yield Problem.of(cfg, f"{name}.hf_path", problem)
