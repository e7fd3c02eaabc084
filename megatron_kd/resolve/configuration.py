"""From a recipe, files and a command line to one checked configuration.

Precedence: recipe < `--config-file` < command line, flags and overrides alike. Nothing given is changed; every problem
is reported at once.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from megatron_kd.checks import problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import read_document
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.schema import build, flatten, schema_of, wrong_sections
from megatron_kd.config.values import FieldPath, check_value, dotted
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.into_config import with_huggingface
from megatron_kd.resolve.edits import Source, apply_edits, is_kd_file
from megatron_kd.resolve.overrides import parse_arguments


def resolve(recipe_config: ConfigContainer, argv: Sequence[str] = ()) -> ConfigContainer:
    """Apply files and overrides to a recipe's values, and check every type.

    Args:
        recipe_config: what the recipe returned; it is not changed. Its class of `model` stays.
        argv: `--config-file FILE`, flags and overrides.

    Raises:
        ConfigError: with one line for each unknown key, wrong type and unreadable argument of all sources.
    """
    config, wrong, _ = merge(recipe_config, argv)
    if wrong:
        raise ConfigError(wrong)
    return config


def load_config(
    recipe: Callable[[], ConfigContainer], argv: Sequence[str] = (), world_size: int | None = None
) -> ConfigContainer:
    """Resolve a recipe and check it as a whole: what a run does first, and what `validate` does.

    Args:
        recipe: returns the recipe's values.
        argv: `--config-file FILE`, flags and overrides.
        world_size: number of ranks; None reads WORLD_SIZE, which torchrun sets, and checks less if it is unset.

    Raises:
        ConfigError: with the lines of `check_config`.
    """
    config, wrong = check_config(recipe(), argv, world_size)
    if wrong:
        raise ConfigError(wrong)
    return config


def check_config(
    recipe_config: ConfigContainer, argv: Sequence[str], world_size: int | None = None
) -> tuple[ConfigContainer, list[str]]:
    """Merge and check, without raising.

    Returns:
        the configuration with bad edits left out, and the lines of `resolve` and of `problems`, none twice.
    """
    config, wrong, origins = merge(recipe_config, argv)
    if world_size is None and os.environ.get("WORLD_SIZE", "").isdigit():
        world_size = int(os.environ["WORLD_SIZE"])
    found = (naming_flags(problem, origins) for problem in problems(config, world_size))
    return config, list(dict.fromkeys([*wrong, *found]))


def naming_flags(problem: str, origins: Mapping[FieldPath, Source]) -> str:
    """A line of `problems` that ends in the flags, if any, that set the fields it begins with: ` [--batch_size 0]`."""
    flags = [
        source.name
        for path, source in origins.items()
        if source.name.startswith("--") and re.search(rf"(^|, ){re.escape(dotted(path))}(=|:)", problem)
    ]
    return f"{problem} [{', '.join(dict.fromkeys(flags))}]" if flags else problem


def config_from_file(path: str | pathlib.Path, argv: Sequence[str] = ()) -> ConfigContainer:
    """A run from a file alone, such as a saved `run_config.yaml`; what it leaves out has its class default.

    Args:
        path: the YAML file.
        argv: `--config-file FILE`, flags and overrides, which win over the file.

    Raises:
        ConfigError: as `resolve`.
    """
    return resolve(defaults_for(path), ["--config-file", str(path), *argv])


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


def merge(
    recipe_config: ConfigContainer, argv: Sequence[str]
) -> tuple[ConfigContainer, list[str], dict[FieldPath, Source]]:
    """Apply `argv` to a recipe's values, leaving out what is bad, and fill in what Hugging Face folders say.

    Returns:
        a new configuration with right types throughout, one line for each thing left out, and where the values
        that are not the recipe's came from.
    """
    schema = schema_of(recipe_config)
    flat, wrong = flatten(recipe_config, schema), []
    for section in wrong_sections(recipe_config):
        name = schema.sections[section].__name__
        wrong.append(f"{dotted(section)}: must be a {name} [recipe]")
    for path, annotation in schema.leaves.items():
        flat[path], problem = check_value(path, annotation, flat[path])
        if problem is not None:
            wrong.append(f"{problem} [recipe]")
            flat[path] = schema.defaults[path]
    arguments = parse_arguments(argv)
    wrong += arguments.problems
    origins: dict[FieldPath, Source] = {}
    wrong += apply_edits(flat, arguments.edits, schema, origins)
    config, unfit = with_huggingface(build(flat, schema), origins)
    for path, problem in unfit:
        wrong.append(problem + (origins[path].at(path) if path in origins else " [recipe]"))
    return config, wrong, origins
