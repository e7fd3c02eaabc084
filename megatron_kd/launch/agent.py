"""torchrun, with the exit code of the run: starts the ranks of one node and passes signals on to them.

    python -m megatron_kd.launch.agent RUN_DIR --standalone --nproc-per-node=2 RECIPE logger.run_dir=RUN_DIR

All arguments but the first are torchrun's. torchrun itself returns 1 whatever a rank returned, and turns to killing
its ranks when it is sent a signal. Here a signal is passed on, as often as it comes, and the ranks decide what to do.
Whoever starts this removes `run_dir/exit_code` before any node is started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from megatron_kd.errors import CheckpointCorrupt, InputError, NumericalFault, Preempted
from megatron_kd.runtime.exit_code import CLEARED, read_exit_code, record_exit_code
from megatron_kd.runtime.signals import PASSED_ON, STOP_SIGNALS

# torchrun sets handlers for the signals it is told of. One that nobody sends leaves ours in place.
_TORCHRUN_HANDLES = "SIGUSR2"

_SAID_BY_RANKS = (InputError.exit_code, NumericalFault.exit_code, CheckpointCorrupt.exit_code, Preempted.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Start this node's ranks and wait for them.

    Returns:
        How the run ended: the code in `run_dir/exit_code`, else that of this node's rank that failed first.
    """
    first, *torchrun_words = sys.argv[1:] if argv is None else argv
    run_dir = Path(first)
    os.environ[CLEARED] = "1"
    passing_on = _PassingOn()
    sys.addaudithook(passing_on.audit)
    for number in PASSED_ON:
        signal.signal(number, passing_on.handle)
    try:
        return _run_ranks(run_dir, torchrun_words)
    finally:
        for number in PASSED_ON:  # this process ends now, by the run's code and not by a signal that comes late
            signal.signal(number, signal.SIG_IGN)


def _run_ranks(run_dir: Path, torchrun_words: Sequence[str]) -> int:
    try:
        run(parse_args([f"--signals-to-handle={_TORCHRUN_HANDLES}", *torchrun_words]))
    except Preempted as stopped:  # there were no ranks yet
        record_exit_code(run_dir, stopped.exit_code)
        return read_exit_code(run_dir) or stopped.exit_code
    except ChildFailedError as failed:
        _record_failure(run_dir, *failed.get_first_failure())
        return read_exit_code(run_dir) or 1  # a disk that fails cannot say it
    except BaseException:
        record_exit_code(run_dir, 1)
        raise
    return read_exit_code(run_dir) or 0


def _record_failure(run_dir: Path, rank: int, failure: ProcessFailure) -> None:
    """Record what a rank that was killed cannot, and say which rank of this node failed first."""
    killed_by = signal.Signals(-failure.exitcode) if failure.exitcode < 0 else None
    if killed_by in STOP_SIGNALS:  # before it could handle it
        record_exit_code(run_dir, Preempted.exit_code)
    elif killed_by is not None:
        record_exit_code(run_dir, 1, known_first=True)
    else:
        record_exit_code(run_dir, failure.exitcode)
    if failure.exitcode in _SAID_BY_RANKS or killed_by in STOP_SIGNALS:
        return
    how = f"exit code {failure.exitcode}" if killed_by is None else f"killed by {killed_by.name}"
    where = f"local rank {failure.local_rank} on {socket.gethostname()}, process {failure.pid}"
    at = time.strftime("%H:%M:%S", time.localtime(failure.timestamp))
    print(f"error: rank {rank} was the first to fail here, at {at}: {how} ({where})", file=sys.stderr, flush=True)


class _PassingOn:
    """Sends this process's ranks what it is sent."""

    def __init__(self) -> None:
        self._started = False

    def audit(self, event: str, args: tuple[object, ...]) -> None:
        """Notes that ranks are started: later they are gone because they have ended."""
        self._started = self._started or event == "subprocess.Popen"

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if not self._started:
            raise Preempted(f"{signal.Signals(number).name} while starting: nothing was done yet")
        for rank in psutil.Process().children():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(rank.pid, number)


if __name__ == "__main__":
    raise SystemExit(main())
