"""The exceptions users meet. Each carries the exit code a process ends with when it is not handled.

To add one: subclass `MegatronKDError` together with the standard-library error it is a case of, give it a
class attribute `exit_code` from the table below, and say in the message which field, which value and what cures it.

    0 done | 1 a bug, a lost rank, a disk that fails | 2 bad input | 17 numerical fault | 18 corrupt checkpoint
    75 preempted: requeue me
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# An error whose class takes other arguments than its message says what it is made of: errors cross processes.
Pickled = tuple[type[Any], tuple[Any, ...], dict[str, Any]]


class MegatronKDError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(MegatronKDError, ValueError):
    """The user's input cannot be used: a path, a file, a layout, a flag."""

    exit_code = 2


class ConfigError(InputError):
    """One or more problems of a configuration, all of them at once.

    Args:
        problems: each a `config.problem.Problem`, or a line that names what is wrong and its cure. One that is given
            twice is kept once.
    """

    def __init__(self, problems: Iterable[object]):
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> Pickled:
        return type(self), (self.problems,), vars(self)

    @property
    def lines(self) -> list[str]:
        """A line for each problem, as users read it."""
        return [str(problem) for problem in self.problems]


class NumericalFault(MegatronKDError, ArithmeticError):
    """A loss or gradient that is not finite.

    Args:
        message: whose, and where.
        sample_ids: the samples of this rank in whose micro-batches it was met, where that is known.
    """

    exit_code = 17

    def __init__(self, message: str, sample_ids: Sequence[int] = ()):
        self.sample_ids = list(sample_ids)
        super().__init__(message)

    def __reduce__(self) -> Pickled:
        return type(self), (str(self), self.sample_ids), vars(self)


class LostRank(MegatronKDError, ConnectionError):
    """Another rank died or does not respond.

    Args:
        rank: which one, where it is known.
        phase: of the run, such as "teacher hand-over".
        detail: the communication library's message.
    """

    def __init__(self, rank: int | None, phase: str, detail: str):
        who = "a rank" if rank is None else f"rank {rank}"
        self.rank, self.phase, self.detail = rank, phase, detail
        super().__init__(f"{phase}: {who} died or does not respond ({detail.partition(chr(10))[0]})")

    def __reduce__(self) -> Pickled:
        return type(self), (self.rank, self.phase, self.detail), vars(self)


class CheckpointCorrupt(MegatronKDError, OSError):
    """A checkpoint that is incomplete or does not hold what it claims."""

    exit_code = 18


class CheckpointNotSaved(MegatronKDError, OSError):
    """A checkpoint could not be written: the disk is full or failing. Earlier checkpoints stay complete."""


class RunFileNotWritten(MegatronKDError, OSError):
    """A file that a run cannot start without could not be written: the disk is full or failing."""


class RunFolderInUse(InputError, BlockingIOError):
    """Another run is active in the run folder. This one has not touched it."""


class Preempted(MegatronKDError, InterruptedError):
    """The run was asked to stop, has saved its state and needs to be started again."""

    exit_code = 75
