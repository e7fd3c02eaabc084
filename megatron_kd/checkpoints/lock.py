"""One run at a time in a run folder."""

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

from megatron_kd.errors import RunFolderInUse

LOCK = "run.lock"
# A host that died keeps its locks on a network file system until its lease ends: 90 s by default under NFS v4.
_LEASE_S = 120.0
_PAUSE_S = 2.0


@contextmanager
def only_run_in(run_dir: Path, lease_s: float = _LEASE_S) -> Iterator[None]:
    """Hold `run_dir`, for one process of a run, until the block ends or the process dies, however it dies.

    The lock is POSIX's, on `run_dir/run.lock`: the kernel releases it with the process, it works over NFS, and child
    processes do not keep it.

    Args:
        run_dir: is made where it is not there.
        lease_s: seconds to wait for a holder on another host, which may be dead. One on this host is alive.

    Raises:
        RunFolderInUse: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "a+", encoding="utf-8") as file:
        _acquire(file, run_dir, time.monotonic() + lease_s)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        file.flush()
        yield


def _acquire(file: Any, run_dir: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):  # POSIX allows both for a lock that another has
            file.seek(0)
            holder = file.read().strip()
        if f'"{socket.gethostname()}"' in holder or time.monotonic() > deadline:
            raise RunFolderInUse(
                f"logger.run_dir={run_dir} is in use by {_who(holder)}; wait for that run, or choose another folder"
            )
        time.sleep(_PAUSE_S)


def _who(holder: str) -> str:
    try:
        content = json.loads(holder)
        return f"process {int(content['pid'])} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "another run, which has not yet said which"
