"""A process's use of its machine, from Linux's /proc: memory, and time by what it was spent on.

`Pss` counts a page that n processes share as one n-th of a page in each, so that a sum over processes counts it once.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)")


@dataclass(frozen=True)
class SharedMapping:
    """A part of this process' memory that writes of other processes show in.

    Attributes:
        start, stop: addresses.
        file: device and inode of what is mapped, equal in all processes.
        offset: of `start` in it, in bytes.
        pss: in bytes.
    """

    start: int
    stop: int
    file: str
    offset: int
    pss: int


@dataclass(frozen=True)
class ThreadTime:
    """Seconds that this thread has run, and has waited for a core though it could have run."""

    run: float
    queued: float


def pss() -> int:
    """Of this process in bytes, once what was freed has been given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return _kilobytes((_PROC / "self/smaps_rollup").read_text(encoding="utf-8"))


def shared_mappings() -> list[SharedMapping]:
    """Those of this process that have a file; the file's name may be gone."""
    found = []
    text = (_PROC / "self/smaps").read_text(encoding="utf-8")
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE):
        head = _HEAD.match(block)
        if head and head[3].endswith("s") and head[6] != "0":
            start, stop, offset = (int(head[group], 16) for group in (1, 2, 4))
            found.append(SharedMapping(start, stop, f"{head[5]}:{head[6]}", offset, _kilobytes(block)))
    return found


def thread_time() -> ThreadTime:
    """Of the calling thread since it began."""
    run, queued, _ = (_PROC / "thread-self/schedstat").read_text(encoding="utf-8").split()
    return ThreadTime(int(run) / 1e9, int(queued) / 1e9)


def _kilobytes(text: str) -> int:
    match = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
    assert match is not None, "this kernel does not tell Pss"
    return int(match[1]) * 1024
