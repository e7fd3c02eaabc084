"""Reading a model's weights out of a checkpoint folder, at any parallel layout."""

from __future__ import annotations

import re
from pathlib import Path

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_kd.errors import InputError
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.agreement import raised_together

_ITERATION = re.compile(r"iter_(\d{7,})$")


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a `checkpoints/` folder by step, ascending. A folder of that name is complete."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _ITERATION.match(path.name)) and path.is_dir():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def find_checkpoint(path: str | Path, field: str) -> Path:
    """The checkpoint that `path` means: itself, or the newest in a `checkpoints/` or run folder.

    Args:
        path: `.../iter_0000100`, `.../checkpoints` or a run folder.
        field: the configuration field the path came from, for the error.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if dist_checkpointing.check_is_distributed_checkpoint(str(path)) if path.is_dir() else False:
        return path
    for folder in (path, path / "checkpoints"):
        if found := complete_checkpoints(folder):
            return list(found.values())[-1]
    raise InputError(
        f"{field}={path}: no checkpoint there; give a folder such as RUN_DIR/checkpoints/iter_0001000, "
        "written by a run with checkpoint.save=true"
    )


def load_weights(chunks: list[DistillableGPTModel], path: str | Path, field: str) -> None:
    """Load the model part of a checkpoint into this rank's chunks of a model, each rank its own shards.

    Raises:
        InputError: no checkpoint there, or one of another architecture; the message lists what differs.
    """
    folder = find_checkpoint(path, field)
    state = {f"model{index}": chunk.sharded_state_dict() for index, chunk in enumerate(chunks)}
    _refuse_mismatch(state, folder, field)
    try:
        loaded = dist_checkpointing.load(state, str(folder))
    except CheckpointingException as error:
        raise InputError(f"{field}={folder}: {error}") from error
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{index}"])


def load_in_place(shards: list[ShardedTensor], path: str | Path, field: str) -> None:
    """Read tensors of a checkpoint into the memory that `shards` have. Every rank must call this, with any shards.

    Raises:
        InputError: no checkpoint there, or one of another architecture; on every rank.
    """
    state = {str(index): shard for index, shard in enumerate(shards)}
    with raised_together():
        folder = find_checkpoint(path, field)
        _refuse_mismatch(state, folder, field)
    dist_checkpointing.load(state, str(folder), validate_access_integrity=False)


def _refuse_mismatch(state: dict, folder: Path, field: str) -> None:
    """Compare names and global shapes before any tensor is read, and report all differences."""
    saved = dist_checkpointing.load_tensors_metadata(str(folder))
    problems = []
    for wanted in _sharded_tensors(state):
        if wanted.key not in saved:
            problems.append(f"{wanted.key} is missing")
        elif not wanted.allow_shape_mismatch and tuple(saved[wanted.key].global_shape) != tuple(wanted.global_shape):
            shapes = f"{tuple(saved[wanted.key].global_shape)}, the model wants {tuple(wanted.global_shape)}"
            problems.append(f"{wanted.key} has shape {shapes}")
    if problems:
        unique = list(dict.fromkeys(problems))
        more = f"; and {len(unique) - 5} more" if len(unique) > 5 else ""
        raise InputError(f"{field}={folder} holds another model: {'; '.join(unique[:5])}{more}")


def _sharded_tensors(state: dict) -> list[ShardedTensor]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    tensors: list[ShardedTensor] = []
    for value in nested_values(state):
        built = value.build() if isinstance(value, ShardedTensorFactory) else value
        tensors += [t for t in (built if isinstance(built, list) else [built]) if isinstance(t, ShardedTensor)]
    return tensors
