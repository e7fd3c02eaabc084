"""Saving: a folder is complete under its name, or not there, and all ranks succeed or fail together.

1. All ranks plan; rank 0 makes a folder under another name, and checks that the disk has room.
2. Each rank writes its file, hashing what it writes, and waits until it is on the disk.
3. When all have, rank 0 writes the index and the manifest, and gives the folder its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import CHAT_TEMPLATE, MANIFEST, METADATA, RUN_STATE
from megatron_kd.checkpoints.folders import discard, make_partial, publish
from megatron_kd.checkpoints.manifest import Manifest
from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checkpoints.shards import BACKEND, COMMON_BACKEND, Plan, Shards, write_index, write_shards
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.errors import CheckpointNotSaved, MegatronKDError
from megatron_kd.runtime.files import write_text
from megatron_kd.runtime.space import not_saved, refuse_full_disk
from megatron_kd.runtime.together import from_all, on_rank_0, raised_together, rank_of_ranks, to_rank_0


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is planned and has a folder of a temporary name."""

    final: Path
    folder: Path
    plan: Plan
    needed: int  # bytes, of all ranks
    run_config: str
    run_state: RunState
    chat_template: str | None


def save(final: Path, plan: Callable[[Path], Plan], run_config: str, run_state: RunState) -> Path:
    """Write a checkpoint, and return when it is complete. Every rank must call this, or one process without ranks.

    Args:
        final: must not be there.
        plan: plans what goes into a folder, such as `shards.plan_shards` of a state.
        run_config: text of `run_config.yaml`, which says what model it is.
        run_state: goes to `run_state.json`.

    Returns:
        `final`.

    Raises:
        InputError: there is something at `final`.
        CheckpointNotSaved: on every rank; the disk of one of them is full or failing.
    """
    draft = begin(final, plan, run_config, run_state)
    return complete(draft, attempt(draft))


def begin(
    final: Path,
    plan: Callable[[Path], Plan],
    run_config: str,
    run_state: RunState,
    chat_template: str | None = None,
) -> Draft:
    """Make the folder, plan, and look for room. Every rank must call this. Arguments and errors are those of `save`.

    `chat_template`, of conversations that the model is trained on, goes to a file of its own.
    """

    def make() -> Path:
        with not_saved(final, 0):
            return make_partial(final)

    folder = on_rank_0(make)
    planned = plan(folder)
    draft = Draft(final, folder, planned, sum(from_all(planned.size)), run_config, run_state, chat_template)
    with raised_together():
        if rank_of_ranks()[0] == 0:
            try:
                refuse_full_disk(final, draft.needed)
            except CheckpointNotSaved:
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
        everyone = to_rank_0(written)
        with raised_together(), not_saved(draft.final, draft.needed):
            if everyone is not None:
                _finish(draft, everyone)
    except MegatronKDError:  # raised on all ranks, so none writes into the folder any more
        if rank_of_ranks()[0] == 0 and draft.folder.exists():
            discard(draft.folder)
        raise
    return draft.final


def _finish(draft: Draft, everyone: list[Shards]) -> None:
    folder, state = draft.folder, draft.run_state
    files = write_index(draft.plan, everyone, folder)
    for name, text in (
        (RUN_CONFIG, draft.run_config),
        (RUN_STATE, state.text()),
        (METADATA, json.dumps({**BACKEND, **COMMON_BACKEND})),
        *([] if draft.chat_template is None else [(CHAT_TEMPLATE, draft.chat_template)]),
    ):
        files[name] = write_text(folder / name, text)
    write_text(folder / MANIFEST, Manifest(state.step, state.layout, files[RUN_CONFIG].sha256, files).text())
    publish(folder, draft.final)
