"""Edits of a configuration as users write them: an override, or a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kd.config.document import write_yaml


def as_words(edits: Mapping[str, Any]) -> list[str]:
    """An override for each field, by its dotted name."""
    return [f"{name}={_hydra(value)}" for name, value in edits.items()]


def as_file(path: Path, edits: Mapping[str, Any]) -> list[str]:
    """Write a YAML file that sets fields, by their dotted names.

    Returns:
        The arguments that name the file.
    """
    data: dict[str, Any] = {}
    for name, value in edits.items():
        *sections, last = name.split(".")
        section = data
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    path.write_text(write_yaml(data))
    return ["--config-file", str(path)]


def _hydra(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"'{value}'" if isinstance(value, str) else repr(value)
