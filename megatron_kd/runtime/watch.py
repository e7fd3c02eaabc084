"""Who is still there and what each rank is doing, known without the process groups that may hang.

A thread of every rank puts a beat into the run's key-value store twice a second: a count, and the step and phase that
the rank is in. A rank that was killed or stopped has no more beats. When one is waited for in vain, the others name it,
and write down the stacks of all their threads.
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
_LISTEN_S = 1.4  # in which a rank that is there beats at least once, also where the machine is busy
_STORE_S = 1.0
_GRACE_S = 0.5  # for the communication library to say by itself that it waited too long
_LOST = "lost"

# What gloo, nccl and the store say of a peer that is gone or silent. Other errors are bugs, and stay what they are.
_COMMUNICATION = re.compile(
    r"gloo/|NCCL|nccl|[Tt]imed? ?out|Connection (closed|reset|refused)|Broken pipe|Socket|recvValue|sendBytes"
)


@dataclass
class Doing:
    """What this rank is at: the step being taken, and the phase of it."""

    step: int = 0
    phase: str = "starting"
    since: float = field(default_factory=time.monotonic)  # seconds

    def enter(self, phase: str, step: int | None = None) -> None:
        """From now on this rank is in `phase`."""
        self.phase, self.since = phase, time.monotonic()
        self.step = self.step if step is None else step

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}"


@dataclass(frozen=True)
class Beat:
    """The last that was heard of a rank; `count` is 0 where nothing was."""

    count: int
    where: str

    @classmethod
    def read(cls, text: bytes) -> Beat:
        return cls(*json.loads(text))


class Watch:
    """Beats for this rank, and listens for the others when one is missed.

    Args:
        doing: of this rank, read by the thread.
        stacks: the folder that `rank_N.txt` goes to, with the stacks of this rank's threads; None to write none.
        give_up: called by the thread, when the main thread has been in one phase for longer than ranks wait for each
            other and has not raised; it does not return.
    """

    def __init__(self, doing: Doing, stacks: Path | None, give_up: Callable[[LostRank], None]) -> None:
        self._doing, self._stacks, self._give_up = doing, stacks, give_up
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._store = _own_store()  # the thread's
        self._count = 0
        self._over = threading.Event()
        self._raised = False  # the main thread has, and is about to say why
        self._written = threading.Lock()
        self._thread = threading.Thread(target=self._beat_until_over, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(timeout=_STORE_S + _BEAT_S)

    def lost_rank(self, detail: str, rank: int | None = None) -> LostRank:
        """Find out who is missed, have all ranks write down their stacks, and return the error that says so.

        Args:
            detail: what the communication library said.
            rank: who is missed, where that is known.
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
            return LostRank(None, phase, f"{detail.splitlines()[0]}, and all ranks were heard of: {_places(beats)}")
        seen = f", last seen in {beats[missed].where}" if beats[missed].count else ""
        also = [str(other) for other in silent if other != missed]
        others = f", and silent too: {', '.join(also)}" if also else ""
        return LostRank(missed, phase, f"{detail.splitlines()[0]}{seen}{others}")

    def _listen(self) -> tuple[list[int], list[Beat]]:
        """The ranks that do not beat, and the last beat of every rank."""
        store = _own_store()
        store.set(_LOST, str(self._rank))
        store.set(_left(self._rank), "")
        first = self._beats(store)
        time.sleep(_LISTEN_S)
        second = self._beats(store)
        silent = [r for r, (a, b) in enumerate(zip(first, second, strict=True)) if a.count == b.count]
        # One that missed somebody itself has ended for that reason.
        return [r for r in silent if r != self._rank and not store.check([_left(r)])], second

    def _beats(self, store: Any) -> list[Beat]:
        keys = [_key(rank) for rank in range(self._world_size)]
        return [Beat.read(store.get(key)) if store.check([key]) else Beat(0, "its start") for key in keys]

    def _beat_until_over(self) -> None:
        self._beat()  # at once: a rank may be lost in its first steps
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
        except RuntimeError:  # the store is gone or silent; whoever waits in vain will say so
            pass

    def _write_stacks(self) -> None:
        if self._stacks is None or not self._written.acquire(blocking=False):
            return  # written already, of a moment nearer to the fault
        path = self._stacks / f"rank_{self._rank}.txt"
        with going_on_without(path):
            self._stacks.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank} in {self._doing}\n")
                traceback.print_exc(file=file)  # where the main thread was, if it has left that place
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


@contextmanager
def watching(doing: Doing, stacks: Path | None, give_up: Callable[[LostRank], None]) -> Iterator[None]:
    """Watch over the block; what it raises because of a rank that is gone becomes a `LostRank` that names it.

    Raises:
        LostRank: a rank is waited for in vain.
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
    """End this rank while its main thread waits in vain, in a kernel perhaps, and cannot raise."""
    rank = dist.get_rank()
    print(f"rank {rank}: {lost}" if rank else f"error: {lost}", file=sys.stderr, flush=True)
    os._exit(lost.exit_code)


def _own_store() -> Any:
    """A connection of its own to the run's store: one that another thread waits on answers nobody else."""
    store = dist.PrefixStore("watch", distributed_c10d._get_default_store()).clone()
    store.set_timeout(timedelta(seconds=_STORE_S))
    return store


def _places(beats: list[Beat]) -> str:
    """Which ranks are where, fewest first: where one is that others wait for."""
    ranks: dict[str, list[str]] = {}
    for rank, beat in enumerate(beats):
        ranks.setdefault(beat.where, []).append(str(rank))
    fewest_first = sorted(ranks.items(), key=lambda item: len(item[1]))
    return "; ".join(f"{', '.join(there)} in {where}" for where, there in fewest_first)


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"
