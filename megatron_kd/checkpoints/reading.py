"""Reading a checkpoint: first what it holds is verified, by all ranks together, then tensors are read in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_kd.checkpoints.contents import MANIFEST, METADATA, RUN_STATE, step_of
from megatron_kd.checkpoints.manifest import Manifest, read_manifest, strangers
from megatron_kd.checkpoints.pickles import check_objects, read_common, read_metadata, reason
from megatron_kd.checkpoints.saved_state import RunState, read_run_state
from megatron_kd.checkpoints.shards import BACKEND, COMMON_BACKEND
from megatron_kd.errors import CheckpointCorrupt, InputError
from megatron_kd.runtime.files import FileRecord, why_not
from megatron_kd.runtime.together import on_rank_0, raised_together, rank_of_ranks


@dataclass(frozen=True)
class Verified:
    """A checkpoint whose files are as they were written, and whose pickles hold nothing but values.

    Attributes:
        folder: where it lies.
        metadata: what tensors it has.
        state: what it says about its run; None, as the next, for one of another Megatron program.
        manifest: what its files were when they were written.
    """

    folder: Path
    metadata: Metadata
    state: RunState | None
    manifest: Manifest | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The global shape of each tensor by its sharded key."""
        described = self.metadata.state_dict_metadata.items()
        return {key: tuple(tensor.size) for key, tensor in described if isinstance(tensor, TensorStorageMetadata)}


def verify(folder: Path, *, need_manifest: bool = True) -> Verified:
    """Compare a checkpoint with its manifest, and look for what a file of values must not hold.

    Every rank must call this, or one process without ranks. Each reads a part of the bytes, and all have the same
    verdict.

    Args:
        folder: equal on all ranks.
        need_manifest: false accepts a checkpoint of another Megatron program, whose bytes cannot be verified.

    Raises:
        CheckpointCorrupt: on every rank; names the file.
    """

    manifest = on_rank_0(lambda: _manifest(folder) if need_manifest or (folder / MANIFEST).exists() else None)
    rank, ranks = rank_of_ranks()
    with raised_together():
        if manifest is not None:
            _compare(folder, _share(manifest.files, rank, ranks))
    with raised_together():
        metadata = _read_values(folder, rank, ranks)
        state = read_run_state(folder)
    return Verified(folder, metadata, state, manifest)


def opened(folder: Path) -> Verified:
    """A checkpoint that this process reads by itself, other ranks or not, without comparing it with its manifest.

    What `verify` checks in pickles is checked here too.

    Raises:
        CheckpointCorrupt: names the file.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
    return Verified(folder, _read_values(folder, 0, 1), read_run_state(folder), manifest)


def load(state: dict[str, Any], verified: Verified, *, whole: bool = True) -> dict[str, Any]:
    """megatron-core's load. Every rank must call this.

    Args:
        state: sharded tensors and objects; tensors that have memory are read into it.
        whole: false where the ranks' tensors overlap, or leave some out.

    Returns:
        `state` with what was read, and the values that ranks share.

    Raises:
        InputError: the checkpoint belongs to another model.
        CheckpointCorrupt: the content does not match the index.
    """
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(verified.folder), validate_access_integrity=whole)
    except (CheckpointException, CheckpointingException) as error:
        raise CheckpointCorrupt(f"{verified.folder}: {_cause(error)}") from error
    return loaded


def mismatches(
    state: dict[str, Any] | Sequence[ShardedTensor], shapes: Mapping[str, tuple[int, ...]],
    of_vocabulary: Callable[[ShardedTensor, tuple[int, ...]], list[str]],
) -> list[str]:  # fmt: skip
    """Names and global shapes that a model wants and a checkpoint does not have.

    Args:
        state: nested, with sharded tensors in it.
        shapes: as `Verified.shapes`.
        of_vocabulary: what is wrong with a tensor that may have another number of rows.
    """
    problems: dict[str, None] = {}
    for wanted in _tensors(state if isinstance(state, dict) else {"": list(state)}):
        have, want = shapes.get(wanted.key), tuple(wanted.global_shape)
        if have is None:
            problems[f"{wanted.key} is missing"] = None
        elif wanted.allow_shape_mismatch and have[1:] == want[1:]:
            problems.update(dict.fromkeys(of_vocabulary(wanted, have)))
        elif have != want:
            problems[f"{wanted.key} has shape {have}, the model needs {want}"] = None
    return list(problems)


def refuse_other_model(problems: list[str], what: str) -> None:
    """Raise for `mismatches`, if there are any.

    Raises:
        InputError: lists the first of them.
    """
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{what} holds another model: {'; '.join(problems[:5])}{more}")


def _tensors(state: Any) -> Iterator[ShardedTensor]:
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):  # a tensor that is saved in parts
            yield from _tensors(value.build())
        elif isinstance(value, ShardedTensor):
            yield value


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    named = step_of(folder)
    if manifest.layout and named is not None and named != manifest.step:  # of a run, not weights alone
        raise CheckpointCorrupt(f"{folder / MANIFEST}: is of step {manifest.step}, the folder's name of {named}")
    if foreign := strangers(folder, manifest):
        raise CheckpointCorrupt(f"{folder / foreign[0]}: was not written with this checkpoint; move it elsewhere")
    for name in (METADATA, RUN_STATE):
        if name not in manifest.files:
            raise CheckpointCorrupt(f"{folder / name}: is not in {MANIFEST}")
    return manifest


def _read_values(folder: Path, rank: int, ranks: int) -> Metadata:
    """Refuse objects that are not plain values, this rank's share of them. Reads no tensor."""
    if rank == 0:
        _refuse_backend(folder)
        read_common(folder)
    metadata = read_metadata(folder)
    check_objects(folder, metadata, rank, ranks)
    return metadata


def _share(files: Mapping[str, FileRecord], rank: int, ranks: int) -> dict[str, FileRecord]:
    """About as many bytes for each rank: the largest files first, each to the rank that has least."""
    loads, mine = [0] * ranks, {}
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        to = loads.index(min(loads))
        loads[to] += files[name].size
        if to == rank:
            mine[name] = files[name]
    return mine


def _compare(folder: Path, files: Mapping[str, FileRecord]) -> None:
    for name, record in files.items():
        if why := why_not(folder / name, record):
            raise CheckpointCorrupt(f"{folder / name}: {why}")


def _refuse_backend(folder: Path) -> None:
    """`metadata.json` names the code that is to read the rest; there is one kind."""
    path = folder / METADATA
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        served = isinstance(said, dict) and {**COMMON_BACKEND, **said} == {**BACKEND, **COMMON_BACKEND}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path}: cannot be read: {error}") from error
    if not served:
        raise CheckpointCorrupt(f"{path}: is not of a checkpoint in megatron-core's torch_dist format: {said!r}")


def _cause(error: BaseException) -> str:
    """The first rank's own error, where torch has gathered those of all."""
    failures = getattr(error, "failures", None)
    if not failures:
        return str(error)
    rank, (cause, _) = next(iter(failures.items()))
    return f"rank {rank}: {reason(cause)}"
