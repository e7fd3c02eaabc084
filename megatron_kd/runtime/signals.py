"""Requests to stop: SIGTERM and SIGUSR1, which schedulers send before they reclaim a machine, and Ctrl-C.

A rank that is starting has no work to lose and ends immediately. A rank that trains only records the signal: the ranks
agree on the step to stop after (`training.forward_pass`), and no number of signals interrupts a checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from megatron_kd.errors import Preempted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PASSED_ON = (*STOP_SIGNALS, signal.SIGHUP)  # by launchers to ranks: closing a terminal is a request to stop, too

# A data worker receives a job's signal together with its rank, which still needs it to finish the step.
_WORKER_GRACE_S = 30


class StopSignals:
    """The stop signals of this process.

    Attributes:
        received: the first one, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._pid = os.getpid()

    def defer(self) -> None:
        """Only record signals from now on; the caller polls `received`.

        Raises:
            Preempted: a signal came before, and its exception was lost: libraries catch exceptions of their imports.
        """
        self._deferred = True
        if self.received is not None:
            raise Preempted(f"{self.received.name} while starting: nothing was done yet")

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if os.getpid() != self._pid:
            self._handle_in_worker(number)
            return
        self.received = self.received or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
        if not self._deferred:
            raise Preempted(f"{signal.Signals(number).name} while starting: nothing was done yet")

    def _handle_in_worker(self, number: int) -> None:
        """Handle a signal in a process forked from this one: a signal to a whole job is meant for its ranks.

        While its rank finishes the step, a worker survives SIGTERM for a limited time.
        """
        if number != signal.SIGTERM:
            return
        if self._deferred:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_WORKER_GRACE_S)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


_listening: StopSignals | None = None  # a process has one set of handlers


@contextmanager
def listening() -> Iterator[StopSignals]:
    """Handle the stop signals of this process in the block. A nested block shares the outer one's `StopSignals`.

    Only the main thread can set handlers: in another one, nothing is ever received.

    Raises:
        Preempted: a signal came before `StopSignals.defer`.
    """
    global _listening
    if _listening is not None or threading.current_thread() is not threading.main_thread():
        yield _listening or StopSignals()
        return
    _listening = stop = StopSignals()
    try:
        with handling(STOP_SIGNALS, stop.handle):
            yield stop
    finally:
        _listening = None


@contextmanager
def handling(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` handle the signals `numbers` in the block."""
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield
    finally:
        for number, known in previous.items():
            signal.signal(number, known)
