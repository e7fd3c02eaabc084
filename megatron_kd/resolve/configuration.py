"""From a recipe, files and a command line to one checked configuration.

Precedence: recipe < `--config-file` < command line, flags and overrides alike. Nothing given is changed; every problem
is reported at once.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from megatron_kd.checks import problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import read_document
from megatron_kd.config.field_types import check_value
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.schema import Schema, build, changed_fields, flatten, schema_of, wrong_sections
from megatron_kd.config.values import FieldPath, dotted
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.into_config import fill_from_folders
from megatron_kd.resolve.edits import apply_edits, is_kd_file
from megatron_kd.resolve.overrides import parse_arguments

# Origins of values that no file and no argument has set.
RECIPE, DEFAULT = "recipe", "default"


@dataclass(frozen=True)
class Merged:
    """A recipe's values with files and a command line over them.

    Attributes:
        config: right types throughout; what is bad is left out.
        problems: of what was left out, then of the whole where that was checked. None has its like.
        origins: where each value was set, by the field's dotted name: a file with its line, a flag, `command line`, a
            Hugging Face folder's `config.json`, `recipe`, or `default` where it is the class's.
        edited: dotted names of the fields that files and the command line have set.
        notes: what was decided otherwise than the recipe has it, a line each.
    """

    config: ConfigContainer
    problems: tuple[Problem, ...]
    origins: Mapping[str, str]
    edited: frozenset[str]
    notes: tuple[str, ...] = ()

    def with_problems(self, found: Iterable[Problem]) -> Merged:
        """This with more problems, each with the origins of its fields."""
        located = (problem.located(self.origins) for problem in found)
        return replace(self, problems=tuple(dict.fromkeys([*self.problems, *located])))

    def with_changes(self, config: ConfigContainer, by: str) -> Merged:
        """This with another configuration; `by` is the origin of the fields that are new or differ."""
        changed = dict.fromkeys(changed_fields(self.config, config), by)
        return replace(self, config=config, origins={**self.origins, **changed})

    def without_problems(self) -> ConfigContainer:
        """The configuration.

        Raises:
            ConfigError: it has problems.
        """
        if self.problems:
            raise ConfigError(self.problems)
        return self.config

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add the origins of fields to each configuration error that the block raises."""
        try:
            yield
        except ConfigError as error:
            found = (p.located(self.origins) if isinstance(p, Problem) else p for p in error.problems)
            raise ConfigError(found) from error


def with_arguments(recipe_config: ConfigContainer, argv: Sequence[str] = ()) -> ConfigContainer:
    """Apply files and overrides to a recipe's values, and check every type.

    Args:
        recipe_config: what the recipe returned; it is not changed. Its class of `model` stays.
        argv: `--config-file FILE`, flags and overrides.

    Raises:
        ConfigError: each unknown key, wrong type and unreadable argument of all sources.
    """
    return merge(recipe_config, argv).without_problems()


def load_config(
    recipe: Callable[[], ConfigContainer], argv: Sequence[str] = (), world_size: int | None = None
) -> ConfigContainer:
    """`check_config` of a recipe's values, raising: what a run does first, and what `validate` does.

    Raises:
        ConfigError: with the problems of `check_config`.
    """
    return check_config(recipe(), argv, world_size).without_problems()


def check_config(recipe_config: ConfigContainer, argv: Sequence[str], world_size: int | None = None) -> Merged:
    """Merge, and check the result as a whole.

    Args:
        recipe_config: as in `with_arguments`.
        argv: as in `with_arguments`.
        world_size: number of ranks; None reads WORLD_SIZE, which torchrun sets, and checks less if it is unset.
    """
    merged = merge(recipe_config, argv)
    if world_size is None and os.environ.get("WORLD_SIZE", "").isdigit():
        world_size = int(os.environ["WORLD_SIZE"])
    left_out = {field.name for problem in merged.problems for field in problem.fields}
    found = problems(merged.config, world_size)
    # One cause, one problem: what a value that was left out would have been is not known.
    return merged.with_problems(p for p in found if left_out.isdisjoint(field.name for field in p.fields))


def config_from_file(path: str | pathlib.Path, argv: Sequence[str] = ()) -> ConfigContainer:
    """A run from a file alone, such as a saved `run_config.yaml`; what it leaves out has its class default.

    Args:
        path: the YAML file.
        argv: `--config-file FILE`, flags and overrides, which win over the file.

    Raises:
        ConfigError: as `with_arguments`.
    """
    return with_arguments(defaults_for(path), ["--config-file", str(path), *argv])


def defaults_for(path: str | pathlib.Path) -> ConfigContainer:
    """The class defaults that a file is laid over.

    `model` is a `GPTDistillationProvider` if the file has `model.teacher` or `model.kd_config`, else a plain
    `GPTModelProvider`.

    Raises:
        ConfigError: the file cannot be read.
    """
    document = read_document(path)
    model = document.data.get("model")
    distils = is_kd_file(document) or (isinstance(model, dict) and bool({"teacher", "kd_config"} & set(model)))
    return ConfigContainer(model=GPTDistillationProvider()) if distils else ConfigContainer()


def merge(recipe_config: ConfigContainer, argv: Sequence[str], origins: Mapping[str, str] | None = None) -> Merged:
    """Apply `argv` to a recipe's values, leaving out what is bad, and fill in what Hugging Face folders say.

    Args:
        recipe_config: the values below all others.
        argv: `--config-file FILE`, flags and overrides.
        origins: where those values were set, by dotted name; None: in a recipe, or nowhere.
    """
    schema = schema_of(recipe_config)
    flat, of_types = _with_right_types(recipe_config, schema)
    below = dict(origins or _in_recipe(flat, schema))
    arguments = parse_arguments(argv)
    edited, of_edits = apply_edits(flat, arguments.edits, schema)
    filled = fill_from_folders(build(flat, schema), edited)
    merged = Merged(filled.value, (), {**below, **edited, **filled.origins}, frozenset(edited), filled.notes)
    return merged.with_problems([*of_types, *arguments.problems, *of_edits, *filled.problems])


def _with_right_types(config: ConfigContainer, schema: Schema) -> tuple[dict[FieldPath, Any], list[Problem]]:
    """The values of `config`, with the class default where one has not its field's type; and those that have not."""
    found = [
        Problem((Setting(dotted(path), origin=RECIPE),), f"must be a {schema.sections[path].__name__}")
        for path in wrong_sections(config)
    ]
    flat = flatten(config, schema)
    for path, annotation in schema.leaves.items():
        flat[path], problem = check_value(path, annotation, flat[path])
        if problem is not None:
            found.append(problem.located({dotted(path): RECIPE}))
            flat[path] = schema.defaults[path]
    return flat, found


def _in_recipe(flat: Mapping[FieldPath, Any], schema: Schema) -> dict[str, str]:
    """Where a recipe's values were set. One that is the class default is called so, whoever wrote it."""
    return {dotted(path): DEFAULT if value == schema.defaults[path] else RECIPE for path, value in flat.items()}
