"""torchrun, with the exit code of the run: starts the ranks of one node and passes signals on to them.

    python -m megatron_kd.launch.agent RUN_DIR --standalone --nproc-per-node=2 RECIPE logger.run_dir=RUN_DIR

All arguments but the first are torchrun's. torchrun itself returns 1 whatever a rank returned, and turns to killing
its ranks when it is sent a signal. Here a signal is passed on, as often as it comes, and the ranks decide what to do.
Whoever starts this sets `run_dir/exit_code` aside before any node is started, and puts it back at the end if there is
none then: the run was refused, and the folder stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, parse_min_max_nnodes, run

from megatron_kd.errors import CheckpointCorrupt, InputError, NumericalFault, Preempted
from megatron_kd.messages import words_in_report
from megatron_kd.runtime.exit_code import read_exit_code, record_exit_code
from megatron_kd.runtime.lock import RUN
from megatron_kd.runtime.signals import PASSED_ON, STOP_SIGNALS

# torchrun replaces the handlers of the signals it is given. One that no process sends leaves ours in place.
_TORCHRUN_HANDLES = "SIGUSR2"

_SAID_BY_RANKS = (InputError.exit_code, NumericalFault.exit_code, CheckpointCorrupt.exit_code, Preempted.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Start this node's ranks and wait for them.

    Returns:
        How the run ended: the code in `run_dir/exit_code`, else that of this node's rank that failed first.
    """
    first, *torchrun_words = sys.argv[1:] if argv is None else argv
    run_dir = Path(first)
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
    # Its lines about ranks that end would stand below the words of those ranks; who failed first is reported here.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        args = parse_args([f"--signals-to-handle={_TORCHRUN_HANDLES}", *torchrun_words])
        os.environ[RUN] = _run_id(args)
        run(args)
    except Preempted as stopped:  # there were no ranks yet
        record_exit_code(run_dir, stopped.exit_code)
        return read_exit_code(run_dir) or stopped.exit_code
    except ChildFailedError as failed:
        code = _record_failure(run_dir, *failed.get_first_failure())
        return read_exit_code(run_dir) or code  # a disk that fails cannot say it, nor one that found another run
    except BaseException:
        record_exit_code(run_dir, 1)
        raise
    return read_exit_code(run_dir) or 0


def _run_id(args: argparse.Namespace) -> str:
    """The same on all nodes."""
    if args.standalone or parse_min_max_nnodes(args.nnodes)[1] == 1:
        return str(uuid.uuid4())
    return f"{args.rdzv_id} at {args.rdzv_endpoint or f'{args.master_addr}:{args.master_port}'}"


def _record_failure(run_dir: Path, rank: int, failure: ProcessFailure) -> int:
    """Record what a rank that was killed cannot, and say which rank of this node failed first; returns its code."""
    killed_by = signal.Signals(-failure.exitcode) if failure.exitcode < 0 else None
    stopped = killed_by in STOP_SIGNALS  # before it could handle it
    code = failure.exitcode if killed_by is None else Preempted.exit_code if stopped else 1
    record_exit_code(run_dir, code, known_first=killed_by is not None and not stopped)
    if failure.exitcode in _SAID_BY_RANKS or stopped:
        if failure.exitcode == InputError.exit_code and (words := words_in_report(failure.message)):
            print(words, file=sys.stderr, flush=True)  # the rank has left it to us
        return code
    how = f"exit code {failure.exitcode}" if killed_by is None else f"killed by {killed_by.name}"
    where = f"local rank {failure.local_rank} on {socket.gethostname()}, process {failure.pid}"
    at = time.strftime("%H:%M:%S", time.localtime(failure.timestamp))
    print(f"error: rank {rank} was the first to fail here, at {at}: {how} ({where})", file=sys.stderr, flush=True)
    return code


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
