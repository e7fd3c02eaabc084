"""A path that a command was given for a model: a Hugging Face folder or a checkpoint of megatron_kd. No torch."""

from __future__ import annotations

from pathlib import Path

from megatron_kd.checkpoints.contents import find_checkpoint
from megatron_kd.config.hub_names import looks_like_hub_name
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import is_huggingface_folder
from megatron_kd.huggingface.other_folders import what_else


def find_model(path: str | Path, field: str) -> tuple[Path, bool]:
    """The folder that `path` means, and whether it is a Hugging Face folder.

    Args:
        path: a Hugging Face folder, a checkpoint, or a `checkpoints` or run folder, whose newest checkpoint is meant.
        field: what errors call the path's origin.

    Raises:
        InputError: there is no model; it says what there is, or how to get one.
    """
    path = Path(path)
    if is_huggingface_folder(path):
        return path, True
    try:
        return find_checkpoint(path, field), False
    except InputError as error:
        if looks_like_hub_name(path):
            raise
        if path.exists() and (recognised := what_else(path)):
            raise InputError(f"{field}={path}: no checkpoint there; {recognised}") from None
        raise InputError(f"{error}; or give a Hugging Face folder, which has a config.json") from None
