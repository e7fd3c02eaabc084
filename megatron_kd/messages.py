"""Terminal output of commands and runs: errors in plain lines, without the libraries' own warnings."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_kd.errors import ConfigError, MegatronKDError

# torchrun ends all ranks as soon as one exits: the others give rank 0 the time to print what is wrong.
SECONDS_FOR_RANK_0 = 10.0


def tell(error: MegatronKDError) -> None:
    """Print an error, one line per problem."""
    for line in error.lines if isinstance(error, ConfigError) else [str(error)]:
        print(f"error: {line}", file=sys.stderr)


def tell_as_rank(error: MegatronKDError) -> None:
    """Print an error once if all ranks of torchrun have it, and with the rank if it may be this one's alone."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        tell(error)
    elif isinstance(error, ConfigError):  # found by all of them before they wait for each other
        time.sleep(SECONDS_FOR_RANK_0)
    else:
        print(f"rank {rank}: {error}", file=sys.stderr)


@contextmanager
def going_on_without(path: Path, what: str = "") -> Iterator[None]:
    """Warn that a file could not be written instead of raising: a run must not end because of a log.

    Args:
        path: of the file.
        what: the lost content, if it is recorded nowhere else.
    """
    try:
        yield
    except OSError as error:
        lost = f"; lost: {what}" if what else ""
        print(f"warning: {path} was not written: {error.strerror or error}{lost}", file=sys.stderr, flush=True)


def first_line(error: object) -> str:
    """The first line of a library's error: what follows explains the library, not the user's mistake."""
    return str(error).strip().partition("\n")[0]


def quieten_libraries() -> None:
    """Hide the libraries' warnings about missing kernels and deprecations; `python -W` shows them.

    Printed by every rank while importing, they would bury the one line that the user needs.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(megatron\.core|modelopt|torch|transformers)(\.|$)")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
