"""`megatron-kd ls`: the recipes there are, with the first line of what each says about itself."""

from __future__ import annotations

import argparse

from megatron_kd.resolve.recipe_files import list_recipes, recipes_folder

SUMMARY = "list the recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each recipe."""
    recipes = list_recipes(recipes_folder())
    width = max((len(str(path)) for path, _ in recipes), default=0)
    for path, summary in recipes:
        print(f"{path!s:<{width}}  {summary}".rstrip())
    return 0
