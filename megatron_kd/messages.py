"""Terminal output of commands and runs: errors in plain lines, without the libraries' own warnings."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_kd.errors import ConfigError, InputError, MegatronKDError

# torchrun ends all ranks as soon as one exits: the others give rank 0 the time to print what is wrong.
SECONDS_FOR_RANK_0 = 10.0


def tell(error: MegatronKDError) -> None:
    """Report an error, one line per problem.

    Under torchrun, rank 0's words are in the report that torchrun ends with. Bad input is there alone. Other errors
    are printed at once too: torchrun reports the ranks that it finds ended first, and this may not be one of them.
    """
    lines = error.lines if isinstance(error, ConfigError) else [str(error)]
    words = "\n".join(f"error: {line}" for line in lines)
    if not (_put_into_report(words) and isinstance(error, InputError)):
        print(words, file=sys.stderr, flush=True)


def tell_of_rank(rank: int, error: MegatronKDError) -> None:
    """Report an error that may be this rank's alone."""
    words = f"rank {rank}: {error}"
    _put_into_report(words)
    print(words, file=sys.stderr, flush=True)


def tell_as_rank(error: MegatronKDError) -> None:
    """Report an error once if all ranks of torchrun have it, and with the rank if it may be this one's alone."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        tell(error)
    elif isinstance(error, ConfigError):  # found by all of them before they wait for each other
        time.sleep(SECONDS_FOR_RANK_0)
    else:
        tell_of_rank(rank, error)


def words_in_report(message: object) -> str | None:
    """The words of `tell` in what torchrun has read of a rank that failed; None where they are another's."""
    words = message.get("message") if isinstance(message, dict) else None
    return words if isinstance(words, str) else None


def _put_into_report(words: str) -> bool:
    """Hand words to torchrun as `torch.distributed.elastic` reads them; false where it will not show them."""
    path, attempt = os.environ.get("TORCHELASTIC_ERROR_FILE"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if not path:
        return False
    # torchrun shows `py_callstack` after "traceback : ", and indents all lines but the first.
    extra = {"py_callstack": f"\n{words}", "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": words, "extraInfo": extra}}), encoding="utf-8")
    except OSError:
        return False
    return attempt == os.environ.get("TORCHELASTIC_MAX_RESTARTS")  # it reports its last attempt alone


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
