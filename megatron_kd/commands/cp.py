"""`megatron-kd cp RECIPE [DEST]`: a recipe of one's own, to change.

megatron-kd cp distill_llama32_3b-1b my_runs
megatron-kd cp distill_llama32_3b-1b my_runs/first.py
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from megatron_kd.commands.arguments import add_recipe, path
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.resolve.recipe_files import find_recipe, parts_of
from megatron_kd.runtime.files import taken

SUMMARY = "copy a recipe, with what it shares with others, to change it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_recipe(parser)
    parser.add_argument(
        "dest", type=path, metavar="DEST", nargs="?", default=".", help="a folder, or a file that ends in .py (.)"
    )


def run(args: argparse.Namespace) -> int:
    """Copy the recipe with what it imports from beside it, and say where to."""
    for made in copy_recipe(args.recipe, args.dest):
        print(made)
    return 0


def copy_recipe(recipe: str | Path, dest: str | Path) -> list[Path]:
    """Copy a recipe and its parts, so that it runs from where it then lies.

    Args:
        recipe: as in `find_recipe`.
        dest: a folder, made where it is not there, or the copy's own name, which ends in .py.

    Returns:
        the copies, the recipe's first.

    Raises:
        ConfigError: a line for each file that is there already; nothing is overwritten, and then nothing is copied.
        InputError: there is no such recipe.
    """
    source, dest = find_recipe(recipe), Path(dest)
    named = dest.suffix == ".py"
    folder = dest.parent if named else dest
    copies = {source: dest if named else folder / source.name}
    copies |= {part: folder / part.name for part in parts_of(source)}
    same = [part for part, copy in copies.items() if part != source and copy.exists() and _equal(part, copy)]
    cure = "move it away, or name another DEST"
    if problems := [problem for part, copy in copies.items() if part not in same and (problem := taken(copy, cure))]:
        raise ConfigError(problems)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{dest}: {error.strerror}; give DEST a folder, or a name that ends in .py") from error
    for original, copy in copies.items():
        if original not in same:
            shutil.copyfile(original, copy)
    return list(copies.values())


def _equal(one: Path, other: Path) -> bool:
    """Whether a part is there already, as another recipe's copy brought it."""
    return other.is_file() and one.read_bytes() == other.read_bytes()
