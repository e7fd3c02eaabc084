"""`megatron-kd validate`: check a recipe with its overrides, and print every field with its value.

    megatron-kd validate recipes/tiny/distill_tiny.py --world-size 2 --batch_size 4 model.num_layers=1

Starts nothing, writes nothing and needs no torch. What a run with the same arguments on as many ranks would refuse is
refused here, in the same words: the configuration, tokenizers and data. The last line is about what was not checked.
"""

from __future__ import annotations

import argparse
import sys

from megatron_kd.checks.inputs import inspect
from megatron_kd.commands.arguments import add_overrides, add_recipe, config_words, too_small
from megatron_kd.config.run_config import dump_config
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.configuration import check_config
from megatron_kd.resolve.flags import flags_help
from megatron_kd.resolve.recipe_files import load_recipe

SUMMARY = "check a recipe with its overrides and print the resolved configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = (
        "megatron-kd validate RECIPE [--config-file FILE] [--world-size N] [FLAG ...] [section.field=value ...]"
    )
    parser.epilog = f"the flags of a recipe's command line:\n\n{flags_help()}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_recipe(parser)
    add_overrides(parser)
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks (WORLD_SIZE, else unknown)")


def run(args: argparse.Namespace) -> int:
    """Print the configuration.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    if wrong := list(too_small(args, world_size=1)):
        raise ConfigError(wrong)
    checked = check_config(load_recipe(args.recipe)(), config_words(args), args.world_size)
    inspection = inspect(checked.without_problems())
    cfg = checked.with_problems(inspection.problems).without_problems()
    print(dump_config(cfg), end="")
    for note in (*checked.notes, f"not checked: {'; '.join(inspection.unchecked)}"):
        print(note, file=sys.stderr)
    return 0
