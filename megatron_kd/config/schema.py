"""The schema of a configuration: every field by its dotted path, with its type and its class default.

A configuration is handled here as flat data, `{("train", "train_iters"): 1000, ...}`: that is what files and
command lines edit, and what is checked before new dataclasses are built from it. Nothing here knows which sections
there are: a schema is read off an instance.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from megatron_kd.config.other_names import instead_of, words_for
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.values import FieldPath, dotted


@dataclass(frozen=True)
class Schema:
    """The fields of one configuration.

    Attributes:
        sections: the class of every section by path; the empty path is the container's.
        leaves: the type annotation of every field that holds a value.
        defaults: the class default of every such field.
    """

    sections: Mapping[FieldPath, type]
    leaves: Mapping[FieldPath, Any]
    defaults: Mapping[FieldPath, Any]


def schema_of(config: Any, at: FieldPath = ()) -> Schema:
    """The fields of a dataclass instance, and of those inside it, each of the class that its author chose.

    Args:
        config: a whole configuration, or one of its sections.
        at: the path of `config`; empty for a whole configuration.
    """
    sections: dict[FieldPath, type] = {}
    leaves: dict[FieldPath, Any] = {}
    defaults: dict[FieldPath, Any] = {}

    def visit(instance: Any, path: FieldPath) -> None:
        sections[path] = type(instance)
        default, hints = type(instance)(), get_type_hints(type(instance))
        for name in (item.name for item in fields(instance)):
            here, classes = (*path, name), section_classes(hints[name])
            if not classes:
                leaves[here], defaults[here] = hints[name], getattr(default, name)
            elif isinstance(getattr(instance, name), classes):
                visit(getattr(instance, name), here)
            else:  # not a section at all: `wrong_sections` says so
                visit(getattr(default, name), here)

    visit(config, at)
    return Schema(sections, leaves, defaults)


def section_classes(annotation: Any) -> tuple[type, ...]:
    """The dataclasses a field's annotation allows; empty for a field that holds a plain value."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(members) if all(isinstance(cls, type) and is_dataclass(cls) for cls in members) else ()


def wrong_sections(config: Any, path: FieldPath = ()) -> list[FieldPath]:
    """Paths of the sections that hold something which is not a section of the right class."""
    found, hints = [], get_type_hints(type(config))
    for name in (item.name for item in fields(config)):
        classes, value, here = section_classes(hints[name]), getattr(config, name), (*path, name)
        if classes:
            found += wrong_sections(value, here) if isinstance(value, classes) else [here]
    return found


def flatten(config: Any, schema: Schema) -> dict[FieldPath, Any]:
    """Copy every value of `config` out, by path; what is not there has its class default."""
    flat = {}
    for path, default in schema.defaults.items():
        value: Any = config
        for name in path:
            value = getattr(value, name, default)
        flat[path] = copy.deepcopy(value)
    return flat


def changed_fields(before: Any, after: Any) -> set[str]:
    """Dotted names of the fields of `after` that `before` has not, or not with that value."""
    old, schema = flatten(before, schema_of(before)), schema_of(after)
    return {dotted(path) for path, value in flatten(after, schema).items() if path not in old or old[path] != value}


def build(flat: Mapping[FieldPath, Any], schema: Schema, at: FieldPath = ()) -> Any:
    """Make a new instance of the section at `at` (by default of the whole configuration) from flat values."""
    cls = schema.sections[at]
    paths = {item.name: (*at, item.name) for item in fields(cls)}
    return cls(
        **{name: build(flat, schema, path) if path in schema.sections else flat[path] for name, path in paths.items()}
    )


def unknown_key(path: FieldPath, schema: Schema) -> Problem:
    """The problem of an unknown key: what another framework's name is here, else the closest field, else all fields."""
    key = (Setting(dotted(path)),)
    parent = next((path[:n] for n in range(len(path) - 1, 0, -1) if path[:n] in schema.leaves), None)
    if parent:
        return Problem(key, f"{dotted(parent)} is a value without fields of its own", "set it as a whole")
    if said := _by_other_name(path, schema):
        return Problem(key, "unknown key", said)
    near = nearest_key(path, schema)
    return Problem(key, "unknown key", f"did you mean {near}?" if near else _siblings(path, schema))


def _by_other_name(path: FieldPath, schema: Schema) -> str | None:
    """The cure of a name that another framework uses; None where it is unknown, or not of this configuration."""
    words = words_for(path)
    if words is None:
        return instead_of(path[-1])
    known = {dotted(key) for key in (*schema.leaves, *schema.sections)}
    if any(word.partition("=")[0] not in known for word in words.split()):
        return None
    return f"write {words}" if "=" in words else f"did you mean {words}?"


def nearest_key(path: FieldPath, schema: Schema) -> str | None:
    """The known key most like `path`: one slip away, the same name in another section, a similar name, or None."""
    known = {dotted(key): key for key in (*schema.leaves, *schema.sections) if key}
    name = dotted(path)
    if slip := difflib.get_close_matches(name, map(dotted, schema.leaves), n=1, cutoff=0.9):
        return slip[0]
    same_leaf = [other for other, key in known.items() if key[-1] == path[-1]]
    if same_leaf:
        return max(same_leaf, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())
    siblings = {key[-1]: other for other, key in known.items() if key[:-1] == path[:-1]}
    near = difflib.get_close_matches(path[-1], siblings, n=1)
    if near:
        return siblings[near[0]]
    leaves = {key[-1]: other for other, key in reversed(known.items())}  # the first of a name wins
    near = difflib.get_close_matches(path[-1], leaves, n=1, cutoff=0.75)
    if near:
        return leaves[near[0]]
    elsewhere = [other for other, key in known.items() if path[: len(key)] != key]
    near = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.7)
    return near[0] if near else None


def _siblings(path: FieldPath, schema: Schema) -> str:
    parent = next(path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in schema.sections)
    names = ", ".join(item.name for item in fields(schema.sections[parent]))
    return f"the {'fields of ' + dotted(parent) if parent else 'sections'} are {names}"
