"""The lock of a run folder: one run at a time, and which run that is."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_kd.errors import InputError, RunFolderInUse

LOCK = "run.lock"
# Set by an agent for itself and its ranks: equal on all nodes of a run, and different for each attempt.
RUN = "MEGATRON_KD_RUN"
# A host that died keeps its locks on a network file system until its lease ends: 90 s by default under NFS v4.
_LEASE_S = 120.0
_LOOK_S = 0.3  # longer than a process holds the lock in `another_run_in`, only to see whether it is free
_PAUSE_S = 0.1

# Folders that this process holds. POSIX locks belong to the process: closing any descriptor of the file releases them,
# so the process that holds a lock must not open the file to see whether it is held.
_held: set[Path] = set()


@contextmanager
def only_run_in(run_dir: Path, lease_s: float = _LEASE_S) -> Iterator[None]:
    """Hold `run_dir`, for one process of a run, until the block ends or the process dies in any way.

    It is a POSIX lock on `run_dir/run.lock`: the kernel releases it with the process, it works over NFS, and child
    processes do not inherit it.

    Args:
        run_dir: created if it does not exist.
        lease_s: seconds to wait for a holder on another host, which may be dead. A holder on this host is alive.

    Raises:
        RunFolderInUse: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "a+", encoding="utf-8") as file:
        _acquire(file, run_dir, lease_s)
        _held.add(run_dir.resolve())
        file.seek(0)
        earlier = file.read()
        try:
            _replace(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "run": run_id()}) + "\n")
            yield
        except InputError:  # most often a refusal, which leaves the folder as it was
            _replace(file, earlier)
            raise
        finally:
            _held.discard(run_dir.resolve())


def _replace(file: Any, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def another_run_in(run_dir: Path) -> bool:
    """Whether a run that this process does not belong to is active in `run_dir`."""
    if run_dir.resolve() in _held:
        return False
    try:
        with open(run_dir / LOCK, "r+", encoding="utf-8") as file:
            return _value(file.read(), "run") != run_id() and not _lock(file)
    except OSError:  # no run has held it yet, or the disk fails, which whatever writes there reports
        return False


def run_id() -> str:
    """The identity of this process's run and of its attempt, equal on all its ranks."""
    here = socket.gethostname()
    world_size = os.environ.get("WORLD_SIZE", "1")
    if known := os.environ.get(RUN):
        return known
    if world_size == "1":
        return f"{here}:{os.getpid()}"
    where = here if os.environ.get("LOCAL_WORLD_SIZE") == world_size else "several hosts"
    return "/".join(
        [where, *(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))]
    )


def _acquire(file: Any, run_dir: Path, lease_s: float) -> None:
    start = time.monotonic()
    while not _lock(file):
        file.seek(0)
        holder = file.read()
        here = _value(holder, "host") == socket.gethostname()
        if time.monotonic() - start > (_LOOK_S if here else lease_s):
            raise RunFolderInUse(
                f"logger.run_dir={run_dir} is in use by {_who(holder)}; wait for that run, or choose another folder"
            )
        time.sleep(_PAUSE_S)


def _lock(file: Any) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another process holds
        return False
    return True


def _who(holder: str) -> str:
    pid, host = _value(holder, "pid"), _value(holder, "host")
    return "another run, which has not yet said which" if pid is None else f"process {pid} on {host}"


def _value(holder: str, name: str) -> Any:
    try:
        return json.loads(holder)[name]
    except (ValueError, KeyError, TypeError):
        return None
