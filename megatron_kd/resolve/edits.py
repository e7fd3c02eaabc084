"""Edits: what files and command lines ask to change, applied to flat values, with every problem collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import Document, read_document
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.schema import Schema
from megatron_kd.config.values import FieldPath, check_written, dotted, show
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.unknown_keys import why_unknown

KD_CONFIG: FieldPath = ("model", "kd_config")
RESET = object()  # the value of an edit that returns a field to its class default


@dataclass(frozen=True)
class Source:
    """Where an edit was written: the command line, or a file with the lines of its keys."""

    name: str
    lines: Mapping[FieldPath, int] = field(default_factory=dict)

    def at(self, path: FieldPath) -> str:
        """The place of `path`, to end a message with: ` [my.yaml:7]`."""
        line = self.lines.get(path)
        return f" [{self.name}:{line}]" if line else f" [{self.name}]"


@dataclass(frozen=True)
class Edit:
    """Set `path` to `value`: a leaf's value, a mapping for a section, or `RESET`."""

    path: FieldPath
    value: Any
    source: Source


def file_edits(document: Document) -> tuple[list[Edit], list[str]]:
    """The edits a YAML file asks for, and what is wrong with its top level.

    A file whose keys are fields of `ModelOptDistillConfig` means `model.kd_config`; any other names sections.
    """
    kd_keys = [key for key in document.data if key in _names(ModelOptDistillConfig)]
    sections = [key for key in document.data if key in _names(ConfigContainer)]
    if kd_keys and not sections:
        return [kd_file_edit(document)], []
    problems = []
    if kd_keys:
        problems.append(
            f"{document.name}: mixes fields of model.kd_config ({', '.join(kd_keys)}) with sections "
            f"({', '.join(sections)}); put the former under `model:`, `kd_config:`, or in a file of their own"
        )
    data = {key: value for key, value in document.data.items() if key not in kd_keys}
    return [Edit((), data, Source(document.name, document.lines))], problems


def kd_file_edit(document: Document) -> Edit:
    """The edit of a file that holds the fields of `model.kd_config` and nothing else."""
    lines = {(*KD_CONFIG, *path): line for path, line in document.lines.items()}
    return Edit(KD_CONFIG, document.data, Source(document.name, lines))


def is_kd_file(document: Document) -> bool:
    """Whether a file's top level is `model.kd_config`'s fields rather than sections."""
    keys = set(document.data)
    return bool(keys & _names(ModelOptDistillConfig)) and not keys & _names(ConfigContainer)


def apply_edits(
    flat: dict[FieldPath, Any], edits: Iterable[Edit], schema: Schema, origins: dict[FieldPath, Source] | None = None
) -> list[str]:
    """Apply edits to `flat`, later ones over earlier ones; bad ones are left out.

    Args:
        flat: the values, which are changed.
        edits: in the order they apply.
        schema: of the values.
        origins: is told where the value of each edited field came from.

    Returns:
        one line for each bad edit.
    """
    problems: list[str] = []
    origins = {} if origins is None else origins
    for edit in edits:
        for leaf in _leaf_edits(edit, schema, problems):
            value, problem = check_written(leaf.path, schema.leaves[leaf.path], leaf.value)
            if problem:
                problems.append(problem + leaf.source.at(leaf.path))
            else:
                flat[leaf.path] = value
                origins[leaf.path] = leaf.source
    return problems


def _leaf_edits(edit: Edit, schema: Schema, problems: list[str]) -> Iterator[Edit]:
    """Cut an edit into edits of single fields, appending what is wrong with it to `problems`."""
    path, value, source = edit.path, edit.value, edit.source
    if path in schema.leaves:
        yield Edit(path, schema.defaults[path] if value is RESET else value, source)
    elif path not in schema.sections:
        problems.append(why_unknown(path, schema) + source.at(path))
    elif value is RESET:
        inside = [leaf for leaf in schema.leaves if leaf[: len(path)] == path]
        yield from (Edit(leaf, schema.defaults[leaf], source) for leaf in inside)
    elif path == KD_CONFIG and isinstance(value, str):
        yield from _kd_file_leaves(value, schema, problems)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaf_edits(Edit((*path, str(key)), item, source), schema, problems)
    else:
        hint = " or the name of a YAML file" if path == KD_CONFIG else ""
        problems.append(f"{dotted(path)}={show(value)}: is a section, so must be a mapping{hint}{source.at(path)}")


def _kd_file_leaves(name: str, schema: Schema, problems: list[str]) -> Iterator[Edit]:
    try:
        document = read_document(name)
    except ConfigError as error:
        problems.extend(f"model.kd_config={name}: {problem}" for problem in error.problems)
        return
    sections = [key for key in document.data if key in _names(ConfigContainer)]
    if sections:
        problems.append(
            f"model.kd_config={name}: must hold fields of model.kd_config only, but names sections "
            f"({', '.join(sections)}); give it as --config-file {name}"
        )
        return
    yield from _leaf_edits(kd_file_edit(document), schema, problems)


def _names(cls: type) -> set[str]:
    return {item.name for item in fields(cls)}
