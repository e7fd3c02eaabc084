"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from megatron_kd.config.paths import as_meant, why_no_path
from megatron_kd.resolve.flags import CONFIG_FILE


def path(text: str) -> str:
    """The type of an argument that is a path: `~` is the home folder.

    Raises:
        argparse.ArgumentTypeError: text that no path can be, an empty one above all.
    """
    meant = str(as_meant(text))
    if wrong := why_no_path(meant):
        raise argparse.ArgumentTypeError("; ".join(wrong))
    return meant


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE, which `args.recipe` then is."""
    parser.add_argument("recipe", type=path, metavar="RECIPE", help="the name or path of a recipe, such as `ls` lists")


def add_overrides(parser: argparse.ArgumentParser, over: str = "the recipe") -> None:
    """Accept `--config-file FILE`, flags and overrides of the values of `over`; see `config_words`.

    All words that the parser does not know are then `args.overrides`.
    """
    parser.add_argument(CONFIG_FILE, action="append", default=[], type=path, metavar="FILE", help=f"YAML over {over}")
    parser.set_defaults(overrides=[])


def config_words(args: argparse.Namespace) -> list[str]:
    """Files, flags and overrides as `resolve` takes them."""
    return [*(word for name in args.config_file for word in (CONFIG_FILE, name)), *args.overrides]


def option(name: str) -> str:
    """An argument as users write it: `--gpus-per-node` for `gpus_per_node`."""
    return f"--{name.replace('_', '-')}"


def too_small(args: argparse.Namespace, **least: int) -> Iterator[str]:
    """A line for each argument that is given and less than its least value."""
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            yield f"{option(name)} {value}: must be {bound} or more"
