"""Saving: a folder is complete under its name, or not there, and all ranks succeed or fail together.

1. All ranks plan; rank 0 has made a folder of another name, and looks whether the disk has room.
2. Each rank writes its file, hashing what it writes, and waits until it is on the disk.
3. When all have, rank 0 writes the index and the manifest, and gives the folder its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_kd.checkpoints.files import write_text
from megatron_kd.checkpoints.folders import discard, make_partial, publish
from megatron_kd.checkpoints.manifest import Manifest
from megatron_kd.checkpoints.shards import BACKEND, COMMON_BACKEND, Plan, Shards, plan_shards, write_index, write_shards
from megatron_kd.checkpoints.space import not_saved, refuse_full_disk
from megatron_kd.config.saved import MANIFEST, METADATA, RUN_CONFIG, RUN_STATE
from megatron_kd.runtime.agreement import raised_together
from megatron_kd.runtime.rank0 import on_rank_0


@dataclass(frozen=True)
class Texts:
    """The files of a checkpoint that a person can read.

    Attributes:
        run_config: text of `run_config.yaml`.
        run_state: goes to `run_state.json`; what a resumed run needs that is no tensor.
        layout: sizes of the parallel layout, for the manifest.
    """

    run_config: str
    run_state: Mapping[str, Any]
    layout: Mapping[str, int]


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is planned and has a folder of a temporary name."""

    final: Path
    folder: Path
    plan: Plan
    needed: int  # bytes, of all ranks
    texts: Texts


def save(final: Path, state: dict[str, Any], texts: Texts) -> Path:
    """Write a checkpoint, and return when it is complete. Every rank must call this.

    Args:
        final: must not be there.
        state: megatron-core's sharded tensors and objects, and plain values that are equal on all ranks.
        texts: see there.

    Returns:
        `final`.

    Raises:
        InputError: there is something at `final`.
        CheckpointNotSaved: on every rank; the disk of one of them is full or fails.
    """
    draft = begin(final, state, texts)
    return complete(draft, attempt(draft))


def begin(final: Path, state: dict[str, Any], texts: Texts) -> Draft:
    """Make the folder, plan, and look for room. Every rank must call this. Raises as `save` does."""

    def make() -> Path:
        with not_saved(final, 0):
            return make_partial(final)

    folder = on_rank_0(make)
    plan = plan_shards(state, folder)
    sizes = [0] * dist.get_world_size()
    dist.all_gather_object(sizes, plan.size)
    draft = Draft(final, folder, plan, sum(sizes), texts)
    with raised_together():
        if dist.get_rank() == 0:
            try:
                refuse_full_disk(final, draft.needed)
            except OSError:
                discard(folder)
                raise
    return draft


def attempt(draft: Draft) -> Shards | Exception:
    """Write this rank's part. Talks to no other rank, so it may run in a thread; an error is for `complete`."""
    try:
        return write_shards(draft.plan)
    except Exception as error:  # not lost: raised on all ranks by `complete`
        return error


def complete(draft: Draft, written: Shards | Exception) -> Path:
    """Make a checkpoint of what all ranks have written. Every rank must call this. Raises as `save` does."""
    try:
        with raised_together(), not_saved(draft.final, draft.needed):
            if isinstance(written, Exception):
                raise written
        everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(written, everyone)
        with raised_together(), not_saved(draft.final, draft.needed):
            if everyone is not None:
                _finish(draft, everyone)
    except Exception:
        if dist.get_rank() == 0 and draft.folder.exists():  # nobody writes into it any more
            discard(draft.folder)
        raise
    return draft.final


def _finish(draft: Draft, everyone: list[Shards]) -> None:
    folder, texts = draft.folder, draft.texts
    files = write_index(draft.plan, everyone, folder)
    for name, text in (
        (RUN_CONFIG, texts.run_config),
        (RUN_STATE, json.dumps(texts.run_state, indent=1) + "\n"),
        (METADATA, json.dumps({**BACKEND, **COMMON_BACKEND})),
    ):
        files[name] = write_text(folder / name, text)
    step = int(texts.run_state["step"])
    write_text(folder / MANIFEST, Manifest(step, texts.layout, files[RUN_CONFIG].sha256, files).text())
    publish(folder, draft.final)
