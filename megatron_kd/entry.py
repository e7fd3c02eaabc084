"""The last line of a recipe script: from a recipe and a command line to an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_kd import __version__
from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import ConfigError, MegatronKDError, Preempted, RunFolderInUse
from megatron_kd.messages import SECONDS_FOR_RANK_0, quieten_libraries, tell, tell_of_rank
from megatron_kd.resolve.configuration import Merged, check_config
from megatron_kd.resolve.flags import HELP, flags_help
from megatron_kd.runtime.exit_code import holds_run, put_back_exit_code, record_exit_code, set_aside_exit_code
from megatron_kd.runtime.lock import RUN
from megatron_kd.runtime.signals import listening
from megatron_kd.training.hooks.hook import Hook, hook_problems

_USAGE = """\
{usage} [--config-file FILE] [FLAG ...] [section.field=value ...]

Later arguments win over earlier ones, the command line over files, and files over the recipe. Flags set fields:

{flags}
`megatron-kd validate RECIPE` with the same arguments checks them and prints all fields with their values.
"""


def main(
    recipe: Callable[[], ConfigContainer], argv: Sequence[str] | None = None, *, hooks: Sequence[Hook] = ()
) -> int:
    """Run `recipe` with the flags and overrides of `argv` (default: the command line), or print the flags.

    Errors that the user can cure are reported in plain lines, by rank 0 only where all ranks see them.

    Args:
        recipe: returns the configuration.
        argv: words.
        hooks: see `megatron_kd.training.train.train`.

    Returns:
        The exit code of `megatron_kd.errors`, also written to `run_dir/exit_code`.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    argv = sys.argv[1:] if argv is None else argv
    if any(word in HELP for word in argv):
        return _print_usage(rank)
    try:
        with listening():
            try:
                checked = check_config(recipe(), argv, world_size)
            except ConfigError as error:
                return _refuse(error, rank, run_dir=None)
            run_dir = Path(checked.config.logger.run_dir)
            if wrong := [*checked.problems, *hook_problems(hooks)]:
                return _refuse(ConfigError(wrong), rank, run_dir)
            if rank == 0:
                _announce(checked, world_size)
            quieten_libraries()
            with _recorded(run_dir, rank) as ending, checked.located():
                from megatron_kd.training.train import train

                train(checked.config, hooks)
            return ending.code
    except Preempted as error:  # before it was known where to record it
        if rank == 0:  # others may be ended by torchrun since rank 0 has said why the run is refused
            tell(error)
        return error.exit_code


def _announce(checked: Merged, world_size: int) -> None:
    """Print what is run, before imports that take seconds, and what was decided otherwise than the recipe has it."""
    for note in checked.notes:
        print(note, file=sys.stderr)
    logger = checked.config.logger
    if logger.progress != "off":
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        what = f"{Path(sys.argv[0]).stem} into {logger.run_dir}, {ranks}"
        print(f"megatron_kd {__version__}: {what}; importing torch and megatron-core", file=sys.stderr, flush=True)


def _print_usage(rank: int) -> int:
    if rank == 0:
        print(_USAGE.format(usage=f"usage: {sys.argv[0]}", flags=flags_help()), end="")
    return 0


def _refuse(error: ConfigError, rank: int, run_dir: Path | None) -> int:
    """Report, once for all ranks, why the run cannot start."""
    if rank != 0:
        with contextlib.suppress(Preempted):  # by torchrun, when rank 0 has gone
            time.sleep(SECONDS_FOR_RANK_0)
        return error.exit_code
    tell(error)
    if run_dir is not None and not holds_run(run_dir):
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            set_aside_exit_code(run_dir)
            record_exit_code(run_dir, error.exit_code)
            put_back_exit_code(run_dir)
    return error.exit_code


@dataclass
class _Ending:
    """How a run ended: by a bug, an exception that is not ours, unless we learn otherwise."""

    code: int = 1


@contextmanager
def _recorded(run_dir: Path, rank: int) -> Iterator[_Ending]:
    """Report an error of ours that ends the block, and record the exit code in the run folder."""
    ending = _Ending()
    mine = True  # the run folder, unless another run is using it
    alone = rank == 0 and RUN not in os.environ  # else its launcher does, before and after all ranks
    if alone:
        set_aside_exit_code(run_dir)
    try:
        yield ending
        ending.code = 0
    except MegatronKDError as error:
        ending.code = error.exit_code
        mine = not isinstance(error, RunFolderInUse)
        if rank == 0:
            tell(error)
        else:
            tell_of_rank(rank, error)
    finally:
        if mine:
            record_exit_code(run_dir, ending.code)
        if alone:
            put_back_exit_code(run_dir)
