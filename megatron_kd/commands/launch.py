"""`megatron-kd launch`: start a recipe's ranks on this machine, or as a SLURM job.

    megatron-kd launch --local recipes/tiny/distill_tiny.py --nproc 2 train.train_iters=100
    megatron-kd launch --slurm recipes/llama/distill_llama32_3b-1b.py --nodes 4 --gpus-per-node 8 --dry-run

The configuration is checked first, for the number of ranks that it is to have.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kd.commands.arguments import add_overrides, add_recipe, config_words, option, too_small
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import Problem
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.launch.local import LocalLauncher, agent_command
from megatron_kd.launch.slurm import SlurmJob, job_script, submit, template
from megatron_kd.resolve.configuration import check_config
from megatron_kd.resolve.recipe_files import find_recipe, load_recipe

SUMMARY = "start a recipe's ranks on this machine or as a SLURM job"
_USAGE = """\
megatron-kd launch --local RECIPE [--nproc N] [--max-restarts N] [FLAG ...] [section.field=value ...]
       megatron-kd launch --slurm RECIPE [--nodes N] [--gpus-per-node N | --nproc N] [--dry-run] [--time T]
                          [--partition P] [--account A] [--sbatch OPTION] [--container IMAGE] [--mounts FROM:TO]
                          [FLAG ...] [section.field=value ...]"""
_DIRECTIVES = ("job-name", "partition", "account", "time")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = _USAGE
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--local", action="store_true", help="on this machine, and again after a preemption or a fault")
    where.add_argument("--slurm", action="store_true", help="as a SLURM job that goes back into the queue")
    add_recipe(parser)
    add_overrides(parser)
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks of a machine; without GPUs under --slurm (1)")
    local = parser.add_argument_group("--local")
    local.add_argument("--max-restarts", type=int, metavar="N", help="after failures (3)")
    slurm = parser.add_argument_group("--slurm")
    slurm.add_argument("--nodes", type=int, metavar="N", help="machines (1)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs of a machine, a rank each (8)")
    slurm.add_argument("--dry-run", action="store_true", help="print the job and do nothing")
    for name in _DIRECTIVES:
        slurm.add_argument(f"--{name}", metavar="TEXT", help=f"sbatch's --{name}")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="another one: --sbatch qos=high")
    slurm.add_argument("--container", metavar="IMAGE", help="run in a container, with pyxis; python is the image's")
    slurm.add_argument("--mounts", metavar="FROM:TO", help="of the container (the working directory)")


def run(args: argparse.Namespace) -> int:
    """Check, then start or submit.

    Returns:
        The run's exit code under `--local`, 0 once a job is submitted.

    Raises:
        ConfigError: all problems of the arguments and of the configuration.
        InputError: SLURM does not take the job.
    """
    words = config_words(args)
    wrong: list[object] = list(_argument_problems(args))
    ranks_per_node = args.nproc or (1 if args.local else args.gpus_per_node or 8)
    checked = check_config(load_recipe(args.recipe)(), words, max(1, ranks_per_node * (args.nodes or 1)))
    cfg = checked.config
    found = [*_restart_problems(cfg), *(_log_problems(cfg) if args.slurm else ())]
    if wrong := [*wrong, *checked.with_problems(found).problems]:
        raise ConfigError(wrong)
    for note in checked.notes if args.slurm else ():  # under --local, rank 0 prints them
        print(note, file=sys.stderr)
    args.recipe = str(find_recipe(args.recipe))  # as the ranks start it, which know no names
    if args.local:
        command = agent_command(Path(cfg.logger.run_dir), ranks_per_node, args.recipe, words)
        return LocalLauncher(Path(cfg.logger.run_dir), command).run(
            3 if args.max_restarts is None else args.max_restarts
        )
    return _submit(args, cfg, ranks_per_node, words)


def _submit(args: argparse.Namespace, cfg: ConfigContainer, ranks_per_node: int, words: Sequence[str]) -> int:
    given = {name: getattr(args, name.replace("-", "_")) for name in _DIRECTIVES}
    directives: dict[str, str | None] = {name: value for name, value in given.items() if value is not None}
    for text in args.sbatch:
        name, equals, value = text.removeprefix("--").partition("=")
        directives[name] = value if equals else None
    job = SlurmJob(
        nodes=args.nodes or 1,
        ranks_per_node=ranks_per_node,
        gpus=args.nproc is None,
        directives=directives,
        container=args.container,
        mounts=args.mounts,
    )
    run_dir = Path(cfg.logger.run_dir)
    python = None if args.container else sys.executable
    text = job_script(template(), job, recipe=args.recipe, run_dir=str(run_dir), overrides=words, python=python)
    if args.dry_run:
        print(text, end="")
        return 0
    script = run_dir / "slurm" / "distill.sbatch"
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"logger.run_dir={run_dir}: {script} cannot be written: {error.strerror}") from None
    print(f"submitted {script} as job {submit(script)}")
    return 0


def _argument_problems(args: argparse.Namespace) -> Iterator[str]:
    yield from too_small(args, nproc=1, nodes=1, gpus_per_node=1, max_restarts=0)
    others = ["nodes", "gpus_per_node", "dry_run", "sbatch", "container", "mounts", *_DIRECTIVES]
    for name in others if args.local else ["max_restarts"]:
        if getattr(args, name.replace("-", "_")) not in (None, False, []):
            yield f"{option(name)}: goes with {'--slurm' if args.local else '--local'}; leave it out"
    if args.nproc is not None and args.gpus_per_node is not None:
        yield "--nproc, --gpus-per-node: both say the ranks of a node; keep --gpus-per-node where there are GPUs"
    if args.mounts is not None and args.container is None:
        yield "--mounts: needs a container; name its image with --container"
    yield from _sbatch_problems(args)


def _sbatch_problems(args: argparse.Namespace) -> Iterator[str]:
    """Options of sbatch that would not be what they are here, or not for the paths that were checked here."""
    given = [(option(name), getattr(args, name.replace("-", "_"))) for name in _DIRECTIVES]
    for name, text in [*given, *(("--sbatch", text) for text in args.sbatch)]:
        if text is not None and not text.strip():
            yield f"{name}: is empty; leave it out"
        elif text is not None and not text.isprintable():
            yield f"{name} {text!r}: has a newline or control character in it; write one line"
        elif name == "--sbatch" and re.match(r"(--)?chdir\b", text):
            yield f"{name} {text}: paths are those of this folder; leave it out, and start the launcher there"


def _log_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """SLURM fills in no %j in the name of a log with a backslash, and drops the backslash."""
    if "\\" in cfg.logger.run_dir:
        why = "SLURM cannot write its log there: the name has a backslash"
        yield Problem.of(cfg, "logger.run_dir", why, "name another folder")


def _restart_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    if cfg.checkpoint.resume != "auto":
        why = "a run that is started again resumes from its last checkpoint"
        yield Problem.of(cfg, "checkpoint.resume", why, "set checkpoint.resume=auto")
