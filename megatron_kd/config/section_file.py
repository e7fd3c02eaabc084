"""Read one section of a configuration from a YAML file of its own, whose keys are the section's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from megatron_kd.config.document import read_document
from megatron_kd.config.field_types import check_written
from megatron_kd.config.problem import Problem
from megatron_kd.config.schema import build, schema_of, unknown_key
from megatron_kd.config.values import FieldPath, dotted
from megatron_kd.errors import ConfigError

Section = TypeVar("Section")


def read_section(
    path: str | Path, default: Section, at: FieldPath, rules: Callable[[Section], Iterable[Problem]]
) -> Section:
    """The section in a file; fields that the file leaves out have the values of `default`.

    Args:
        path: the YAML file.
        default: an instance without sections inside it.
        at: the section's path in a whole configuration, which messages name its fields by.
        rules: what is wrong with the values of a section.

    Raises:
        ConfigError: unknown keys, wrong types and broken rules, all of them at once, each with its line of the file.
    """
    document, schema = read_document(path), schema_of(default, at)
    origin = document.origin(at)
    flat = {leaf: getattr(default, leaf[-1]) for leaf in schema.leaves}
    origins = {dotted(leaf): "default" for leaf in schema.leaves}
    wrong: list[Problem] = []
    for key, value in document.data.items():
        leaf = (*at, key)
        origins[dotted(leaf)] = origin.at(leaf)
        if leaf not in schema.leaves:
            wrong.append(unknown_key(leaf, schema))
            continue
        checked, problem = check_written(leaf, schema.leaves[leaf], value)
        if problem is None:
            flat[leaf] = checked
        else:
            wrong.append(problem)
    section: Section = build(flat, schema, at)
    wrong += rules(section)
    if wrong:
        raise ConfigError(problem.located(origins) for problem in wrong)
    return section
