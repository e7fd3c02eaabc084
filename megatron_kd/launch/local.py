"""A run on this machine, started again as long as that helps.

The ranks are children of an agent (`megatron_kd.launch.agent`), the agent is a child of this process, which stays small
and does nothing but pass on signals and decide.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.errors import CheckpointCorrupt, InputError, NumericalFault, Preempted
from megatron_kd.runtime.exit_code import put_back_exit_code, set_aside_exit_code
from megatron_kd.runtime.signals import PASSED_ON, STOP_SIGNALS, handling

# How a run ends that would end the same way again.
_FINAL = (0, InputError.exit_code, NumericalFault.exit_code, CheckpointCorrupt.exit_code)


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended.

    Attributes:
        code: exit code of the run.
        progressed: it saved a checkpoint.
        stopped: the launcher itself was asked to stop.
    """

    code: int
    progressed: bool
    stopped: bool


def why_again(attempt: Attempt, failures_left: int) -> str | None:
    """The reason to start the run again, or None.

    Args:
        failures_left: how often a run that failed may still be started again.
    """
    if attempt.stopped or attempt.code in _FINAL:
        return None
    if attempt.code == Preempted.exit_code:
        return "its ranks were asked to stop"
    if not attempt.progressed or failures_left == 0:
        return None
    return f"it failed with exit code {attempt.code}, after a new checkpoint; {failures_left - 1} more restarts"


class LocalLauncher:
    """Starts the ranks of a run, again and again if need be, and passes on what it is sent.

    Args:
        run_dir: the run's folder.
        command: what starts the ranks once and ends with the exit code of the run.
    """

    def __init__(self, run_dir: Path, command: Sequence[str]) -> None:
        self._run_dir, self._command = run_dir, list(command)
        self._agent: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, max_restarts: int) -> int:
        """Run until the end, or until starting again does not help.

        Args:
            max_restarts: of a run that failed; one whose ranks were asked to stop is always started again.

        Returns:
            The exit code of the run's last attempt.
        """
        with handling(PASSED_ON, self._pass_on):
            return self._run(max_restarts)

    def _run(self, max_restarts: int) -> int:
        while True:
            attempt = self._attempt()
            again = why_again(attempt, max_restarts)
            if again is None:
                return attempt.code
            max_restarts -= attempt.code != Preempted.exit_code
            print(f"starting the run again: {again}", file=sys.stderr, flush=True)

    def _attempt(self) -> Attempt:
        if self._stopped:
            return Attempt(Preempted.exit_code, progressed=False, stopped=True)
        set_aside_exit_code(self._run_dir)
        before = newest_step(self._run_dir)
        # In a session of its own, Ctrl-C reaches it through us alone: ranks count how often it comes.
        self._agent = subprocess.Popen(self._command, start_new_session=True)
        if self._stopped:  # while it was being started
            self._agent.send_signal(signal.SIGTERM)
        code = self._agent.wait()
        put_back_exit_code(self._run_dir)
        # An agent that was killed, by a signal that came before it could handle it or by the kernel, says nothing.
        if code < 0:
            code = Preempted.exit_code if -code in STOP_SIGNALS else 1
        return Attempt(code, progressed=newest_step(self._run_dir) > before, stopped=self._stopped)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        if self._agent is not None:
            self._agent.send_signal(number)  # does nothing where it has ended


def agent_command(run_dir: Path, ranks: int, recipe: str, overrides: Sequence[str]) -> list[str]:
    """The command that starts `ranks` ranks of a recipe on this machine once."""
    torchrun = ["--standalone", f"--nproc-per-node={ranks}", recipe, *overrides]
    return [sys.executable, "-m", "megatron_kd.launch.agent", os.fspath(run_dir), *torchrun]


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint of a run; -1 where there is none."""
    return max(complete_checkpoints(run_dir / "checkpoints"), default=-1)
