"""Being asked to stop: SIGTERM and SIGUSR1, which schedulers send before they take a machine away, and Ctrl-C.

A rank that starts up has nothing to lose and ends where it is. One that trains only notes the signal: the ranks
agree on the step to stop after (`training.forward_pass`), and no signal interrupts a checkpoint, however many come.
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
PASSED_ON = (*STOP_SIGNALS, signal.SIGHUP)  # by launchers to ranks: a terminal that is closed asks to stop, too

# A data worker is asked to stop together with its rank, which still needs it to finish the step.
_WORKER_GRACE_S = 30


class StopSignals:
    """What this process was asked by signals.

    Attributes:
        received: the first signal, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._pid = os.getpid()

    def defer(self) -> None:
        """From now on signals are noted and nothing else; the caller looks at `received`.

        Raises:
            Preempted: there was one before, whose exception went unheard: libraries catch what imports raise.
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
        """In a process forked from this one: what is sent to a whole job is meant for the ranks."""
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
    """Handle the stop signals of this process in the block. A block inside another has the other's `StopSignals`.

    Threads other than the main one cannot set handlers: there, nothing is ever received.

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
