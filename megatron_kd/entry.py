"""What a recipe script ends with: from a recipe and a command line to an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import ConfigError, MegatronKDError, Preempted, RunFolderInUse
from megatron_kd.messages import SECONDS_FOR_RANK_0, quieten_libraries, tell
from megatron_kd.resolve.configuration import check_config
from megatron_kd.resolve.flags import HELP, flags_help
from megatron_kd.runtime.exit_code import clear_exit_code, record_exit_code
from megatron_kd.runtime.lock import RUN
from megatron_kd.runtime.signals import listening

_USAGE = """\
{usage} [--config-file FILE] [FLAG ...] [section.field=value ...]

Later arguments win over earlier ones, the command line over files, and files over the recipe. Flags set fields:

{flags}
`megatron-kd validate RECIPE` with the same arguments checks them and prints all fields with their values.
"""


def main(recipe: Callable[[], ConfigContainer], argv: Sequence[str] | None = None) -> int:
    """Run `recipe` with the flags and overrides of `argv` (default: the command line), or print the flags.

    Errors that the user can cure are told in plain lines, by rank 0 only where all ranks see them.

    Returns:
        The exit code of `megatron_kd.errors`, also written to `run_dir/exit_code`.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    argv = sys.argv[1:] if argv is None else argv
    if any(word in HELP for word in argv):
        if rank == 0:
            print(_USAGE.format(usage=f"usage: {sys.argv[0]}", flags=flags_help()), end="")
        return 0
    try:
        with listening():
            return _checked_run(recipe, argv, rank, world_size)
    except Preempted as error:  # before it was known where to record it
        if rank == 0:  # others may be ended by torchrun since rank 0 has told why the run is refused
            tell(error)
        return error.exit_code


def _checked_run(recipe: Callable[[], ConfigContainer], argv: Sequence[str], rank: int, world_size: int) -> int:
    try:
        cfg, problems = check_config(recipe(), argv, world_size)
    except ConfigError as error:
        return _refuse(error, rank, run_dir=None)
    if problems:
        return _refuse(ConfigError(problems), rank, Path(cfg.logger.run_dir))
    return _run(cfg, rank)


def _refuse(error: ConfigError, rank: int, run_dir: Path | None) -> int:
    """Tell, once for all ranks, why the run cannot start."""
    if rank != 0:
        with contextlib.suppress(Preempted):  # by torchrun, when rank 0 has gone
            time.sleep(SECONDS_FOR_RANK_0)
        return error.exit_code
    tell(error)
    if run_dir is not None:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            clear_exit_code(run_dir)
            record_exit_code(run_dir, error.exit_code)
    return error.exit_code


def _run(cfg: ConfigContainer, rank: int) -> int:
    quieten_libraries()
    run_dir = Path(cfg.logger.run_dir)
    mine = True  # the run folder, unless another run is at work in it
    if rank == 0 and RUN not in os.environ:  # else its launcher has, before any rank was started
        clear_exit_code(run_dir)
    code = 1  # unless we learn better: an exception that is not ours is a bug
    try:
        from megatron_kd.training.train import train

        train(cfg)
        code = 0
    except MegatronKDError as error:
        code = error.exit_code
        mine = not isinstance(error, RunFolderInUse)
        if rank == 0:
            tell(error)
        else:
            print(f"rank {rank}: {error}", file=sys.stderr)
    finally:
        if mine:
            record_exit_code(run_dir, code)
    return code
