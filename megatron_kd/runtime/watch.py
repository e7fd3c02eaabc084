"""Liveness of the ranks and what each is doing, without the process groups, which may hang.

A thread of every rank writes a heartbeat to the run's key-value store twice per second: a count, and the step and phase
that the rank is in. A rank that was killed or stopped has no heartbeat. When ranks time out waiting for it, they name
it and write the stacks of all their threads to files.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_kd.errors import LostRank
from megatron_kd.messages import going_on_without
from megatron_kd.runtime import timeouts

_BEAT_S = 0.5
_LISTEN_S = 1.4  # a live rank beats at least once in this time, even on a busy machine
_STORE_S = 1.0  # timeout of the store
_GRACE_S = 0.5  # for the communication library to raise its own timeout first, which names the operation
_LOST = "lost"  # the key that asks all ranks to write their stacks

# Errors of gloo, NCCL and the store about a peer that is gone or silent. All others are bugs and are raised unchanged.
_COMMUNICATION = re.compile(
    r"gloo/|NCCL|nccl|[Tt]imed? ?out|Connection (closed|reset|refused)|Broken pipe|Socket|recvValue|sendBytes"
)


@dataclass
class Doing:
    """This rank's current step, and the phase of the step."""

    step: int = 0
    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)  # seconds

    def enter(self, phase: str, step: int | None = None) -> None:
        """Enter `phase`, of `step` or of the current one."""
        self.phase, self.since = phase, time.monotonic()
        self.step = self.step if step is None else step

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}"


@dataclass(frozen=True)
class Beat:
    """A rank's last heartbeat, with its step and phase; `count` is 0 if there was none."""

    count: int
    where: str

    @classmethod
    def read(cls, text: bytes) -> Beat:
        """The heartbeat that a rank wrote to the store."""
        return cls(*json.loads(text))


class Watch:
    """Writes this rank's heartbeat, and reads the others' when one of them is missed.

    Args:
        doing: this rank's step and phase, read by the thread.
        stacks: the folder for `rank_N.txt`, with the stacks of this rank's threads; None writes none.
        give_up: called by the thread when the main thread has been in one phase for longer than the timeout and has
            not raised; it does not return.
    """

    def __init__(self, doing: Doing, stacks: Path | None, give_up: Callable[[LostRank], None]) -> None:
        self._doing, self._stacks, self._give_up = doing, stacks, give_up
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._store = _own_store()  # used by the thread alone
        self._count = 0
        self._over = threading.Event()
        self._raised = False  # whether the main thread has raised, and is about to report the lost rank itself
        self._written = threading.Lock()  # held from the first write of the stacks on
        self._thread = threading.Thread(target=self._beat_until_over, name="watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._over.set()
        self._thread.join(timeout=_STORE_S + _BEAT_S)

    def lost_rank(self, detail: str, rank: int | None = None) -> LostRank:
        """Find the missing rank, have all ranks write their stacks, and return the error to raise.

        Args:
            detail: the communication library's message.
            rank: the missing rank, if it is known.
        """
        self._raised = True
        self._write_stacks()
        phase = str(self._doing)
        try:
            silent, beats = self._listen()
        except (RuntimeError, ValueError) as error:
            return LostRank(rank, phase, f"{detail}; nor does the store of rank 0 or of its torchrun: {error}")
        missed = rank if rank is not None else next(iter(silent), None)
        if missed is None:
            return LostRank(None, phase, f"{detail.splitlines()[0]}, and all ranks respond: {_places(beats)}")
        seen = f", last seen in {beats[missed].where}" if beats[missed].count else ""
        also = [str(other) for other in silent if other != missed]
        others = f", and silent too: {', '.join(also)}" if also else ""
        return LostRank(missed, phase, f"{detail.splitlines()[0]}{seen}{others}")

    def _listen(self) -> tuple[list[int], list[Beat]]:
        """The ranks without a heartbeat, and the last heartbeat of every rank."""
        store = _own_store()
        store.set(_LOST, str(self._rank))
        store.set(_left(self._rank), "")
        first = self._beats(store)
        time.sleep(_LISTEN_S)
        second = self._beats(store)
        silent = [r for r, (a, b) in enumerate(zip(first, second, strict=True)) if a.count == b.count]
        # A rank that missed another one has ended for that reason, and is not the cause.
        return [r for r in silent if r != self._rank and not store.check([_left(r)])], second

    def _beats(self, store: Any) -> list[Beat]:
        keys = [_key(rank) for rank in range(self._world_size)]
        return [Beat.read(store.get(key)) if store.check([key]) else Beat(0, "its start") for key in keys]

    def _beat_until_over(self) -> None:
        self._beat()  # immediately: a rank may be lost in its first steps
        while not self._over.wait(_BEAT_S):
            self._beat()
            waited, allowed = time.monotonic() - self._doing.since, timeouts.group_timeout()
            if allowed is not None and waited > allowed + _GRACE_S and not self._raised:
                self._give_up(self.lost_rank(f"nothing happened for {waited:.1f} s"))

    def _beat(self) -> None:
        try:
            self._count += 1
            self._store.set(_key(self._rank), json.dumps([self._count, str(self._doing)]))
            if self._store.check([_LOST]):
                self._write_stacks()
        except RuntimeError:  # the store is gone or silent; the ranks that wait for this one report it
            pass

    def _write_stacks(self) -> None:
        if self._stacks is None or not self._written.acquire(blocking=False):
            return  # already written, at a moment nearer to the fault
        path = self._stacks / f"rank_{self._rank}.txt"
        with going_on_without(path):
            self._stacks.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank} in {self._doing}\n")
                traceback.print_exc(file=file)  # where the main thread was, if it has raised since
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


@contextmanager
def watching(doing: Doing, stacks: Path | None, give_up: Callable[[LostRank], None]) -> Iterator[None]:
    """Watch over the block: an error of the communication library becomes a `LostRank` that names the missing rank.

    Raises:
        LostRank: another rank died or does not answer.
    """
    if dist.get_world_size() == 1:
        yield
        return
    watch = Watch(doing, stacks, give_up)
    watch.start()
    try:
        yield
    except LostRank as lost:
        raise watch.lost_rank(lost.detail, lost.rank) from None
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _COMMUNICATION.search(str(error)):
            raise watch.lost_rank(str(error)) from error
        raise
    finally:
        watch.stop()


def end_rank(lost: LostRank) -> None:
    """End this rank from another thread: its main thread hangs, perhaps in a kernel, and cannot raise."""
    rank = dist.get_rank()
    print(f"rank {rank}: {lost}" if rank else f"error: {lost}", file=sys.stderr, flush=True)
    os._exit(lost.exit_code)


def _own_store() -> Any:
    """A separate connection to the run's store: one that another thread is waiting on blocks every other caller."""
    store = dist.PrefixStore("watch", distributed_c10d._get_default_store()).clone()
    store.set_timeout(timedelta(seconds=_STORE_S))
    return store


def _places(beats: list[Beat]) -> str:
    """The ranks by phase, the phase with the fewest first: most likely the others wait for these."""
    ranks: dict[str, list[str]] = {}
    for rank, beat in enumerate(beats):
        ranks.setdefault(beat.where, []).append(str(rank))
    fewest_first = sorted(ranks.items(), key=lambda item: len(item[1]))
    return "; ".join(f"{', '.join(there)} in {where}" for where, there in fewest_first)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"
