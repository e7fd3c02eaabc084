"""Edits: what files and command lines ask to change, applied to flat values, with every problem collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import Document, read_document
from megatron_kd.config.field_types import check_written
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.other_names import instead_of, words_for
from megatron_kd.config.problem import Origin, Problem, Setting
from megatron_kd.config.schema import Schema
from megatron_kd.config.values import FieldPath, dotted, show
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.unknown_keys import why_unknown

KD_CONFIG: FieldPath = ("model", "kd_config")
RESET = object()  # the value of an edit that returns a field to its class default


@dataclass(frozen=True)
class Edit:
    """Set `path` to `value`: a leaf's value, a mapping for a section, or `RESET`. `origin` is where it was written."""

    path: FieldPath
    value: Any
    origin: Origin


def file_edits(document: Document) -> tuple[list[Edit], list[Problem]]:
    """The edits a YAML file asks for, and what is wrong with its top level.

    A file whose keys are fields of `ModelOptDistillConfig` means `model.kd_config`; any other names sections.
    """
    kd_keys = [key for key in document.data if key in _names(ModelOptDistillConfig)]
    sections = [key for key in document.data if key in _names(ConfigContainer)]
    if kd_keys and not sections:
        return [kd_file_edit(document)], []
    problems = []
    if kd_keys:
        mixed = f"mixes fields of model.kd_config ({', '.join(kd_keys)}) with sections ({', '.join(sections)})"
        cure = "put the former under `model:`, `kd_config:`, or in a file of their own"
        problems.append(Problem((Setting(document.name),), mixed, cure))
    data = {key: value for key, value in document.data.items() if key not in kd_keys}
    return [Edit((), data, document.origin())], problems


def kd_file_edit(document: Document) -> Edit:
    """The edit of a file that holds the fields of `model.kd_config` and nothing else."""
    return Edit(KD_CONFIG, document.data, document.origin(KD_CONFIG))


def is_kd_file(document: Document) -> bool:
    """Whether a file's top level is `model.kd_config`'s fields rather than sections."""
    keys = set(document.data)
    return bool(keys & _names(ModelOptDistillConfig)) and not keys & _names(ConfigContainer)


def apply_edits(
    flat: dict[FieldPath, Any], edits: Iterable[Edit], schema: Schema
) -> tuple[dict[str, str], list[Problem]]:
    """Apply edits to `flat`, later ones over earlier ones; bad ones are left out.

    Args:
        flat: the values, which are changed.
        edits: in the order they apply.
        schema: of the values.

    Returns:
        where the value of each edited field, by dotted name, was written, and what is wrong with the bad edits.
    """
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for edit in edits:
        for leaf in _leaf_edits(edit, schema, problems):
            value, problem = check_written(leaf.path, schema.leaves[leaf.path], leaf.value)
            if problem is not None:
                problems.append(_located(problem, leaf))
            else:
                flat[leaf.path] = value
                origins[dotted(leaf.path)] = leaf.origin.at(leaf.path)
    return origins, problems


def _located(problem: Problem, edit: Edit) -> Problem:
    return problem.located({dotted(edit.path): edit.origin.at(edit.path)})


def _leaf_edits(edit: Edit, schema: Schema, problems: list[Problem]) -> Iterator[Edit]:
    """Cut an edit into edits of single fields, appending what is wrong with it to `problems`."""
    path, value, origin = edit.path, edit.value, edit.origin
    if path in schema.leaves:
        yield Edit(path, schema.defaults[path] if value is RESET else value, origin)
    elif path not in schema.sections and (known := _of_other_frameworks(edit)):
        problems.extend(_located(why_unknown(part.path, schema), part) for part in known)
    elif path not in schema.sections:
        problems.append(_located(why_unknown(path, schema), edit))
    elif value is RESET:
        inside = [leaf for leaf in schema.leaves if leaf[: len(path)] == path]
        yield from (Edit(leaf, schema.defaults[leaf], origin) for leaf in inside)
    elif path == KD_CONFIG and isinstance(value, str):
        yield from _kd_file_leaves(edit, schema, problems)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaf_edits(Edit((*path, str(key)), item, origin), schema, problems)
    else:
        hint = " or the name of a YAML file" if path == KD_CONFIG else ""
        section = Setting(dotted(path), show(value))
        problems.append(_located(Problem((section,), f"is a section, so must be a mapping{hint}"), edit))


def _of_other_frameworks(edit: Edit) -> list[Edit]:
    """The edits inside an unknown section whose names other frameworks use: `max_steps` in `trainer`."""
    items = edit.value.items() if isinstance(edit.value, dict) else ()
    inside = [Edit((*edit.path, str(key)), value, edit.origin) for key, value in items]
    return [part for part in inside if words_for(part.path) or instead_of(part.path[-1])]


def _kd_file_leaves(edit: Edit, schema: Schema, problems: list[Problem]) -> Iterator[Edit]:
    name = str(edit.value)
    given = (Setting(dotted(KD_CONFIG), name, edit.origin.at(KD_CONFIG)),)
    try:
        document = read_document(name)
    except ConfigError as error:
        problems.extend(Problem(given, line.removeprefix(f"{name}: ")) for line in error.lines)
        return
    sections = [key for key in document.data if key in _names(ConfigContainer)]
    if sections:
        why = f"must hold fields of model.kd_config only, but names sections ({', '.join(sections)})"
        problems.append(Problem(given, why, f"give it as --config-file {name}"))
        return
    yield from _leaf_edits(kd_file_edit(document), schema, problems)


def _names(cls: type) -> set[str]:
    return {item.name for item in fields(cls)}
