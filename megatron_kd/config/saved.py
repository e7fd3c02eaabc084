"""What checkpoints on disk say about themselves, without reading a tensor or importing torch."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from megatron_kd.config.document import read_document
from megatron_kd.config.schema import check_value
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.models.provider import GPTModelProvider

RUN_CONFIG = "run_config.yaml"
_METADATA = "metadata.json"  # what makes a folder a checkpoint of megatron-core
_ITERATION = re.compile(r"iter_(\d{7,})$")

# Fields of a provider that are a run's choice, and no part of what the model is.
_OF_THE_RUN = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "context_parallel_size",
        "sequence_parallel",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "quantization_calibration_batches",
        "init",
        "checkpoint",
        "hf_path",
    }
)


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a `checkpoints/` folder by step, ascending. A folder of that name is complete."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _ITERATION.match(path.name)) and path.is_dir():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def find_checkpoint(path: str | Path, field: str) -> Path:
    """The checkpoint that `path` means: itself, or the newest in a `checkpoints/` or run folder.

    Args:
        path: `.../iter_0000100`, `.../checkpoints` or a run folder.
        field: the configuration field the path came from, for the error.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if (path / _METADATA).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        if found := complete_checkpoints(folder):
            return list(found.values())[-1]
    raise InputError(
        f"{field}={path}: no checkpoint there; give a folder such as RUN_DIR/checkpoints/iter_0001000, "
        "written by a run with checkpoint.save=true"
    )


def architecture_of(checkpoint: str | Path, field: str = "checkpoint") -> GPTModelProvider:
    """The model that a checkpoint holds, a distillation's student, from its own `run_config.yaml`.

    Args:
        checkpoint: as in `find_checkpoint`.
        field: what errors call the path's origin.

    Returns:
        its architecture; parallel layout, recompute and origin of weights are the class defaults. `vocab_size` is
        None where the run took its tokenizer's; then `training.weights.saved_vocab_size` knows it.

    Raises:
        InputError: no checkpoint, or one that does not say.
    """
    folder = find_checkpoint(checkpoint, field)
    if not (folder / RUN_CONFIG).is_file():
        raise InputError(f"{field}={folder}: has no {RUN_CONFIG}, which says what model it is; copy the folder again")
    model = read_document(folder / RUN_CONFIG).data.get("model")
    if not isinstance(model, dict):
        raise ConfigError([f"{field}={folder}: {RUN_CONFIG} has no model; copy the folder again"])
    types = get_type_hints(GPTModelProvider)
    kept = [f.name for f in fields(GPTModelProvider) if f.name not in _OF_THE_RUN and f.name in model]
    checked = {name: check_value(("model", name), types[name], model[name]) for name in kept}
    if wrong := [problem for _, problem in checked.values() if problem is not None]:
        raise ConfigError([f"{field}={folder}: {RUN_CONFIG}: {problem}" for problem in wrong])
    return GPTModelProvider(**{name: value for name, (value, _) in checked.items()})
