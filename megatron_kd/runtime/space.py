"""Errors of a full or failing disk, as errors that say what they mean for a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_kd.errors import CheckpointNotSaved, MegatronKDError, RunFileNotWritten

_MARGIN = 1 << 20  # bytes for the small files beside the tensors


def refuse_full_disk(final: Path, needed: int) -> None:
    """Refuse to save to a disk without enough space, before anything is written.

    Args:
        final: the checkpoint's folder; its parent exists.
        needed: bytes of its tensors and objects.

    Raises:
        CheckpointNotSaved: the disk has less free space.
    """
    if shutil.disk_usage(final.parent).free < needed + _MARGIN:
        raise CheckpointNotSaved(_text(final, "the disk is too full", needed))


@contextmanager
def not_saved(final: Path, needed: int) -> Iterator[None]:
    """Convert an `OSError` in the block to one that names the checkpoint and the cause.

    Raises:
        CheckpointNotSaved: the disk is full or fails.
    """
    try:
        yield
    except CheckpointNotSaved:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointNotSaved(_text(final, f"{error.strerror or error}{where}", needed)) from error


@contextmanager
def not_written(path: Path) -> Iterator[None]:
    """Convert an `OSError` in the block to one that names the file, which the run cannot start without.

    Raises:
        RunFileNotWritten: the disk is full or fails.
    """
    try:
        yield
    except MegatronKDError:
        raise
    except OSError as error:
        parent = next(folder for folder in path.parents if folder.is_dir())
        raise RunFileNotWritten(
            f"{path} was not written: {error.strerror or error}; {shutil.disk_usage(parent).free} bytes are free in "
            f"{parent}. Free some space, or choose another logger.run_dir"
        ) from error


def _text(final: Path, why: str, needed: int) -> str:
    free = shutil.disk_usage(final.parent).free if final.parent.is_dir() else 0
    return (
        f"{final} was not saved: {why}; it needs {needed} bytes, {free} bytes are free in {final.parent}. "
        "Checkpoints that were complete still are. Free some space, or set checkpoint.most_recent_k, and start again"
    )
