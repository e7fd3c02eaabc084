"""`run_config.yaml`: a whole run's configuration as YAML text, and the file that a run folder keeps."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import write_yaml

RUN_CONFIG = "run_config.yaml"


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
