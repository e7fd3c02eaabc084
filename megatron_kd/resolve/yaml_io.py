"""Configurations as YAML files: the distillation settings alone, and a whole run's."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from megatron_kd.checks.kd_losses import kd_config_problems
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import read_document, write_yaml
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.schema import build, flatten, schema_of
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.edits import apply_edits, kd_file_edit


def load_kd_config(path: str | Path) -> ModelOptDistillConfig:
    """Read a YAML file whose keys are fields of `ModelOptDistillConfig`.

    Raises:
        ConfigError: unknown keys, wrong types or impossible values, all of them at once.
    """
    config = ConfigContainer(model=GPTDistillationProvider())
    schema = schema_of(config)
    flat = flatten(config, schema)
    wrong = apply_edits(flat, [kd_file_edit(read_document(path))], schema)
    model = build(flat, schema).model
    assert isinstance(model, GPTDistillationProvider)
    wrong += [f"{problem} [{path}]" for problem in kd_config_problems(model.kd_config)]
    if wrong:
        raise ConfigError(wrong)
    return model.kd_config


def dump_config(config: ConfigContainer) -> str:
    """The whole configuration, every field in the order of its class, as YAML text."""
    return write_yaml(asdict(config))


def save_run_config(config: ConfigContainer, path: str | Path) -> None:
    """Write a run's configuration to a file that `config_from_file` reads back equal.

    The file is never seen half-written; its folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(dump_config(config), encoding="utf-8")
    part.replace(path)
