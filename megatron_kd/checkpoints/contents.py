"""Checkpoints on disk: finding them, their architecture and tokenizer. Reads no tensor and imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from megatron_kd.config.document import read_document
from megatron_kd.config.field_types import check_value
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.hub_names import absent, looks_like_hub_name
from megatron_kd.config.model_parts import Architecture, names
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.errors import ConfigError, InputError

RUN_STATE = "run_state.json"
BEST = "best.json"
MANIFEST = "manifest.json"
CHAT_TEMPLATE = "chat_template.jinja"  # of the conversations that the model was trained on
METADATA = "metadata.json"  # what makes a folder a checkpoint of megatron-core
_TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION = re.compile(r"iter_([0-9]{7,})")

# The fields of a provider that say what the model is; the others are a run's choice.
_OF_THE_MODEL = (*names(Architecture), "quantization")


def step_of(checkpoint: Path) -> int | None:
    """The step that a checkpoint's name tells; None for one with a name of its own."""
    match = _ITERATION.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else None


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a `checkpoints/` folder by step, ascending. A folder of that name is complete."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (step := step_of(path)) is not None and path.is_dir():
            found[step] = path
    return dict(sorted(found.items()))


def find_checkpoint(path: str | Path, field: str) -> Path:
    """The checkpoint that `path` means: itself, or the newest in a `checkpoints/` or run folder.

    In a folder of another Megatron program, the newest is the one that its tracker file names.

    Args:
        path: `.../iter_0000100`, `.../checkpoints` or a run folder.
        field: the configuration field the path came from, for the error.

    Raises:
        InputError: there is none.
    """
    path = Path(path)
    if (path / METADATA).is_file() or (path / MANIFEST).is_file():
        return path
    if (path / _TRACKER).is_file():
        return path / f"iter_{_tracked(path / _TRACKER, field):07d}"
    for folder in (path, path / "checkpoints"):
        if found := complete_checkpoints(folder):
            return list(found.values())[-1]
    if looks_like_hub_name(path):
        raise InputError(f"{field}={path}: " + "; ".join(absent(path)))
    raise InputError(
        f"{field}={path}: no checkpoint there; give a folder such as RUN_DIR/checkpoints/iter_0001000, "
        "written by a run with checkpoint.save=true"
    )


def best_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of a run's best validation, which the run's `best.json` names.

    Raises:
        InputError: no such file, or no checkpoint of that step.
    """
    path = run_dir / BEST
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
        what, step = f"{best['metric']} {best['value']:.6g}", int(best["step"])
    except OSError:
        why = "is not there; name the folder of a run that has validated, or a checkpoint without --best"
        raise InputError(f"--best: {path}: {why}") from None
    except (KeyError, TypeError, ValueError) as error:
        why = f"names no validation by a metric ({error!r}), as those of earlier versions"
        raise InputError(f"--best: {path}: {why}; name a checkpoint without --best") from None
    found = complete_checkpoints(run_dir / "checkpoints")
    if step not in found:
        there = f"there are those of steps {list(found) or 'none'}"
        cure = "runs with checkpoint.save_best=true save it"
        raise InputError(f"--best: {path}: step {step}, with {what}, has no checkpoint; {there}; {cure}")
    return found[step]


def _tracked(tracker: Path, field: str) -> int:
    """The step that Megatron's tracker file names. It was written in place, and may hold anything."""
    with open(tracker, "rb") as file:
        content = file.read(64).strip()
    if not re.fullmatch(rb"[0-9]{1,18}", content):
        raise InputError(f"{field}={tracker.parent}: {tracker} holds {content[:40]!r}, not the number of a step")
    if not (tracker.parent / f"iter_{int(content):07d}" / METADATA).is_file():
        raise InputError(f"{field}={tracker.parent}: {tracker} names step {int(content)}, which is not there")
    return int(content)


def architecture_of(checkpoint: str | Path, field: str = "checkpoint") -> GPTModelProvider:
    """The model that a checkpoint holds, a distillation's student, from its own `run_config.yaml`.

    Args:
        checkpoint: as in `find_checkpoint`.
        field: what errors call the path's origin.

    Returns:
        its architecture; parallel layout, recompute and origin of weights are the class defaults. `vocab_size` is
        None where the run took its tokenizer's; then `model_weights.saved_vocab_size` knows it.

    Raises:
        InputError: no checkpoint, or one that does not say.
    """
    folder = find_checkpoint(checkpoint, field)
    if not (folder / RUN_CONFIG).is_file():
        raise InputError(f"{field}={folder}: has no {RUN_CONFIG}, which says what model it is; copy the folder again")
    model = read_document(folder / RUN_CONFIG).data.get("model")
    if not isinstance(model, dict):
        raise ConfigError([f"{field}={folder}: {RUN_CONFIG} has no model; copy the folder again"])
    kept = {name: value for name, value in model.items() if name in _OF_THE_MODEL}
    return GPTModelProvider(**_checked(GPTModelProvider, kept, "model", f"{field}={folder}"))


def tokenizer_of(checkpoint: str | Path, field: str = "checkpoint") -> TokenizerConfig | None:
    """The tokenizer that a checkpoint's model was trained with, from its own `run_config.yaml`; None if unknown.

    Raises:
        InputError: no checkpoint, or one whose `run_config.yaml` is damaged.
    """
    folder = find_checkpoint(checkpoint, field)
    section = read_document(folder / RUN_CONFIG).data.get("tokenizer") if (folder / RUN_CONFIG).is_file() else None
    if not isinstance(section, dict):
        return None
    return TokenizerConfig(**_checked(TokenizerConfig, section, "tokenizer", f"{field}={folder}"))


def _checked(section: type, values: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Those of `values` that are fields of the dataclass `section`, which have their types, or a ConfigError."""
    types = get_type_hints(section)
    kept = [field.name for field in fields(section) if field.name in values]
    checked = {field: check_value((name, field), types[field], values[field]) for field in kept}
    if wrong := [problem for _, problem in checked.values() if problem is not None]:
        raise ConfigError([f"{where}: {RUN_CONFIG}: {problem}" for problem in wrong])
    return {field: value for field, (value, _) in checked.items()}
