"""A save in the background: each rank copies its state at once, and a thread writes the copy while the run continues.

A thread, not a process: a process forked beside communication threads or a CUDA context may hang, and a spawned one
imports for seconds. torch releases the interpreter's lock while it writes and hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from megatron_kd.checkpoints.shards import Shards, staged
from megatron_kd.checkpoints.writing import Draft, attempt, complete
from megatron_kd.runtime.together import from_all


class BackgroundSave:
    """At most one save at a time. Every rank must call each method at the same point of the run."""

    def __init__(self) -> None:
        self._draft: Draft | None = None
        self._written: Future[Shards | Exception] | None = None
        self._then: Callable[[Path], None] | None = None

    @property
    def pending(self) -> bool:
        """Whether a save is under way, the same on all ranks."""
        return self._draft is not None

    def start(self, draft: Draft, then: Callable[[Path], None]) -> None:
        """Copy the state, and have it written; one that is under way is waited for first.

        Args:
            draft: a planned checkpoint.
            then: called on every rank once it is complete.

        Raises:
            CheckpointNotSaved: of the save before.
        """
        self.wait()
        copied = replace(draft, plan=staged(draft.plan))
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._draft, self._then, self._written = copied, then, pool.submit(attempt, copied)
        pool.shutdown(wait=False)  # its thread ends with its only task

    def poll(self) -> Path | None:
        """Complete the save if all ranks have written, or fail if one of them could not.

        Returns:
            The checkpoint that is now complete, or None.

        Raises:
            CheckpointNotSaved: on every rank.
        """
        if self._written is None:
            return None
        done = self._written.done()
        failed = done and isinstance(self._written.result(), Exception)
        everyone = from_all((done, failed))
        if all(done for done, _ in everyone) or any(failed for _, failed in everyone):
            return self.wait()
        return None

    def wait(self) -> Path | None:
        """As `poll`, but waits for all ranks to have written."""
        if self._draft is None or self._written is None or self._then is None:
            return None
        draft, written, then = self._draft, self._written.result(), self._then
        self._draft = self._written = self._then = None
        saved = complete(draft, written)
        then(saved)
        return saved
