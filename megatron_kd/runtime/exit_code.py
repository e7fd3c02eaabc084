"""`run_dir/exit_code`: how the run ended. torchrun returns 1 whatever its children returned."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from megatron_kd.errors import InputError
from megatron_kd.messages import going_on_without
from megatron_kd.runtime.lock import another_run_in

_OF_A_RUN = ("run_config.yaml", "checkpoints/iter_*")  # what a run leaves once it has begun
_EARLIER = "exit_code.earlier"

# When ranks end differently, the file holds the cause, not its consequence on the other ranks: the lowest of these, and
# among equals the first. 75 and 1 are equals because either can cause the other: torchrun asks the other ranks to stop
# when one fails, and a rank that stops while starting breaks the connections of the others.
_PRECEDENCE = {17: 0, 18: 1, 2: 2, 1: 3, 75: 3, 0: 4}


def record_exit_code(run_dir: Path, code: int, *, known_first: bool = False) -> None:
    """Write `code` to `run_dir/exit_code`, unless another rank has already written the cause.

    Nothing is written while another run is active in the folder: that run records its own end. Neither is a refusal
    in the folder of a run that has begun, whose record stays as it is. A failing disk is reported, and the process
    still ends with its code.

    Args:
        run_dir: the run's folder.
        code: how this process ends.
        known_first: whether this is the code of the rank that failed first, even if it is recorded late, by the agent:
            a killed rank cannot write.
    """
    if another_run_in(run_dir):
        return
    path = run_dir / "exit_code"
    if code == InputError.exit_code and holds_run(run_dir) and not path.exists():  # an accepted attempt has reserved it
        return
    with going_on_without(path, str(code)):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = file.read().strip()
            if not known or _precedence(code) - known_first * 0.5 < _precedence(int(known)):
                # In place rather than to a new file: that needs no free space on a full disk.
                os.ftruncate(descriptor, os.pwrite(descriptor, f"{code}\n".encode(), 0))


def read_exit_code(run_dir: Path) -> int | None:
    """The code in the file; None if no rank has written one yet, or another run is active in the folder."""
    if another_run_in(run_dir):
        return None
    try:
        text = (run_dir / "exit_code").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    return int(text) if text else None


def set_aside_exit_code(run_dir: Path) -> None:
    """Rename the exit code of an earlier attempt in the same folder, unless another run is active there."""
    with contextlib.suppress(FileNotFoundError):
        if not another_run_in(run_dir):
            os.replace(run_dir / "exit_code", run_dir / _EARLIER)


def put_back_exit_code(run_dir: Path) -> None:
    """Undo `set_aside_exit_code` where the attempt that has ended has recorded nothing: it was refused."""
    earlier = run_dir / _EARLIER
    if another_run_in(run_dir) or not earlier.exists():
        return
    if (run_dir / "exit_code").exists():
        earlier.unlink()
    else:
        os.replace(earlier, run_dir / "exit_code")


def holds_run(run_dir: Path) -> bool:
    """Whether a run has begun in a folder."""
    return any(next(run_dir.glob(pattern), None) for pattern in _OF_A_RUN)


def reserve_exit_code(run_dir: Path) -> None:
    """Reserve space for the code while the disk has some: the file holds an empty line, which means no code.

    The earlier attempt's code is given up: this attempt is accepted.
    """
    path = run_dir / "exit_code"
    with going_on_without(path):
        (run_dir / _EARLIER).unlink(missing_ok=True)
    with going_on_without(path), open(path, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write(b"\n")


def _precedence(code: int) -> int:
    return _PRECEDENCE.get(code, _PRECEDENCE[1])
