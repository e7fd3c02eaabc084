"""`run_dir/exit_code`: how the run ended. torchrun returns 1 whatever its children returned."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from megatron_kd.messages import going_on_without
from megatron_kd.runtime.lock import another_run_in

# When ranks end differently, the file tells the cause, not its consequence on the other ranks: the lowest of these,
# and of equals the first. 75 and 1 are equals: a rank that fails has torchrun ask the others to stop, and one that
# stops while it starts up breaks the others' connections.
_PRECEDENCE = {17: 0, 18: 1, 2: 2, 1: 3, 75: 3, 0: 4}


def record_exit_code(run_dir: Path, code: int, *, known_first: bool = False) -> None:
    """Write `code` to `run_dir/exit_code`, unless another rank has already written a more telling one.

    Nothing is written while another run is at work in the folder: how it ends is its own to tell. A disk that fails is
    told of; a process ends with its code all the same.

    Args:
        known_first: this is of the rank that failed first, though it may be told late: the dead cannot write.
    """
    if another_run_in(run_dir):
        return
    path = run_dir / "exit_code"
    with going_on_without(path, str(code)):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = file.read().strip()
            if not known or _precedence(code) - known_first * 0.5 < _precedence(int(known)):
                # Over what is there rather than anew: a full disk has room for that.
                os.ftruncate(descriptor, os.pwrite(descriptor, f"{code}\n".encode(), 0))


def read_exit_code(run_dir: Path) -> int | None:
    """The code in the file; None where no rank has come to write one, or another run is at work in the folder."""
    if another_run_in(run_dir):
        return None
    try:
        text = (run_dir / "exit_code").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    return int(text) if text else None


def clear_exit_code(run_dir: Path) -> None:
    """Forget how an earlier attempt in the same folder ended; what one that is still at work there will need, stays."""
    if not another_run_in(run_dir):
        (run_dir / "exit_code").unlink(missing_ok=True)


def reserve_exit_code(run_dir: Path) -> None:
    """Have room for the file before the disk is full: an empty line, which says nothing."""
    path = run_dir / "exit_code"
    with going_on_without(path), open(path, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write(b"\n")


def _precedence(code: int) -> int:
    return _PRECEDENCE.get(code, _PRECEDENCE[1])
