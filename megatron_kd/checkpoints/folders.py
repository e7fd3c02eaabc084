"""Checkpoint folders coming and going: a folder called `iter_0000100` is complete, under any other name it is not."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.runtime.files import refuse_existing, sync

_LEFTOVERS = (".*.partial-*", ".*.deleted-*")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"iter_{step:07d}"


def make_partial(final: Path) -> Path:
    """A new folder beside `final` to write into. No other attempt, past or future, has its name.

    Raises:
        InputError: there is something at `final`.
    """
    refuse_existing(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = _other_name(final, "partial")
    partial.mkdir()
    return partial


def publish(partial: Path, final: Path) -> None:
    """Give a folder, all of whose files are on the disk, the name that says so."""
    sync(partial)
    os.rename(partial, final)
    sync(final.parent)


def delete_old(folder: Path, keep: int | None, besides: Collection[int] = ()) -> None:
    """Delete all but the newest `keep` complete checkpoints and those of the steps `besides`; None keeps all."""
    if keep is None:
        return
    for step, path in list(complete_checkpoints(folder).items())[: -max(keep, 1)]:
        if step in besides:
            continue
        doomed = _other_name(path, "deleted")
        with _telling(path):
            os.rename(path, doomed)  # first: half a checkpoint never has its name
            shutil.rmtree(doomed)


def delete_leftovers(folder: Path) -> None:
    """Delete what attempts that were killed while saving or deleting have left. Their run must be over."""
    for pattern in _LEFTOVERS:
        for path in folder.glob(pattern):
            _delete(path)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that cannot be read, so that the run can save that step again. Nothing is deleted.

    Returns:
        Where it is now.
    """
    aside, count = path.with_name(f"{path.name}.corrupt"), 1
    while os.path.lexists(aside):
        count += 1
        aside = path.with_name(f"{path.name}.corrupt{count}")
    os.rename(path, aside)
    sync(path.parent)
    return aside


def discard(partial: Path) -> None:
    """Delete a folder that was not completed, so that its bytes are free again."""
    _delete(partial)


def _delete(path: Path) -> None:
    with _telling(path):
        shutil.rmtree(path)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a run does not end for this: the next one tries again
        warnings.warn(f"{path} cannot be deleted: {error}", stacklevel=4)


def _other_name(final: Path, what: str) -> Path:
    return final.with_name(f".{final.name}.{what}-{secrets.token_hex(4)}")
