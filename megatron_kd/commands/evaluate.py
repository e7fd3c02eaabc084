"""`megatron-kd evaluate`: perplexity of any checkpoint, and how near it is to a teacher.

    megatron-kd evaluate runs/tiny/distilled --output evaluation.json
    megatron-kd evaluate models/student --teacher models/teacher dataset.valid_data_path=[data/corpus]

The command line wins over files, and files over the run's own configuration.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from megatron_kd.commands.arguments import add_overrides, config_words, path
from megatron_kd.errors import ConfigError
from megatron_kd.evaluation.report import output_problems, table, write_json
from megatron_kd.evaluation.saved_model import saved_model
from megatron_kd.evaluation.settings import evaluation_of

SUMMARY = "perplexity, and agreement with a teacher, of any checkpoint"
_USAGE = (
    "megatron-kd evaluate MODEL [--teacher DIR | --no-teacher] [--config-file FILE] [--output FILE] "
    "[section.field=value ...]"
)
_EPILOG = (
    "It reads the validation data of the run that made the checkpoint, in its layout where the ranks allow. On several "
    "ranks: torchrun --nproc_per_node=2 -m megatron_kd.evaluation MODEL model.tensor_model_parallel_size=2"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage, parser.epilog = _USAGE, _EPILOG
    parser.add_argument(
        "model", type=path, metavar="MODEL", help="a run, `checkpoints`, checkpoint or Hugging Face folder"
    )
    teacher = parser.add_mutually_exclusive_group()
    teacher.add_argument(
        "--teacher", type=path, metavar="DIR", help="what to compare with, a folder of either kind (the run's)"
    )
    teacher.add_argument("--no-teacher", action="store_true", help="perplexity only")
    add_overrides(parser, "the run's own")
    parser.add_argument("--output", type=path, metavar="FILE", help="where to write the result as JSON too")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print one table, and return the exit code.

    Raises:
        ConfigError: all problems of arguments and configuration, before any rank waits for another.
        MegatronKDError: see the exit codes in `megatron_kd.errors`.
    """
    if wrong := list(output_problems(args.output)):
        raise ConfigError(wrong)
    evaluation = evaluation_of(
        saved_model(args.model, "MODEL"),
        None if args.teacher is None else saved_model(args.teacher, "--teacher"),
        config_words(args),
        with_teacher=not args.no_teacher,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    from megatron_kd.evaluation.measure import measure

    with evaluation.merged.located():
        report = measure(evaluation)
    if int(os.environ.get("RANK", "0")) == 0:
        print(table(report), end="")
        if args.output is not None:
            write_json(asdict(report), args.output)
    return 0
