"""The run that a checkpoint is from, without its tensors: its configuration, and how far it was. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.saved_state import TOGETHER, RunState, read_run_state
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import global_batch_size
from megatron_kd.config.document import read_document
from megatron_kd.config.field_types import check_value
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.run_config import RUN_CONFIG
from megatron_kd.config.schema import build, schema_of
from megatron_kd.config.values import FieldPath
from megatron_kd.errors import CheckpointCorrupt, ConfigError


@dataclass(frozen=True)
class SavedRun:
    """A run as its checkpoint in `folder` describes it.

    Attributes:
        cfg: the configuration of the attempt that wrote the checkpoint. Fields that its version did not have yet have
            their class defaults, which is what that version did.
        state: its `run_state.json`.
    """

    folder: Path
    cfg: ConfigContainer
    state: RunState

    @property
    def consumed_samples(self) -> int:
        """Training samples that its steps have read."""
        if self.state.consumed_samples is not None:
            return self.state.consumed_samples
        return self.state.step * self._batch

    @property
    def validation_samples(self) -> int:
        """Samples that each of its validations has read."""
        return self.cfg.validation.eval_iters * self._batch

    @property
    def _batch(self) -> int:
        return global_batch_size(self.cfg, self.state.layout.get("dp", 1))

    @property
    def data_order(self) -> str:
        """The order in which it reads text."""
        return self.state.data_order or TOGETHER


def read_saved_run(checkpoint: Path) -> SavedRun | None:
    """The run that a checkpoint is from; None for one of weights alone, or of another Megatron program.

    Raises:
        CheckpointCorrupt: it has files that cannot be read.
    """
    state = read_run_state(checkpoint)
    if state is None or state.scheduler is None:
        return None
    try:
        return SavedRun(checkpoint, _config(read_document(checkpoint / RUN_CONFIG).data), state)
    except ConfigError as error:
        raise CheckpointCorrupt(f"{checkpoint}: {error}") from error


def saved_run_of(checkpoints: Path, resume: str | int) -> SavedRun | None:
    """The run in a `checkpoints/` folder that `checkpoint.resume` continues, as far as its small files tell.

    A damaged checkpoint is left out here: when the run starts, it compares every byte and chooses.
    """
    found = complete_checkpoints(checkpoints)
    steps = [] if resume == "never" else sorted(found, reverse=True) if resume == "auto" else [resume]
    for step in steps:
        try:
            if step in found:
                return read_saved_run(found[step])
        except CheckpointCorrupt:
            continue
    return None


def _config(data: Mapping[str, Any]) -> ConfigContainer:
    """A saved configuration. Keys that this version does not know are left out."""
    model = data.get("model")
    distils = isinstance(model, dict) and "teacher" in model
    default = ConfigContainer(model=GPTDistillationProvider()) if distils else ConfigContainer()
    schema = schema_of(default)
    flat: dict[FieldPath, Any] = {}
    wrong = []
    for path, annotation in schema.leaves.items():
        flat[path], problem = check_value(path, annotation, _at(data, path, schema.defaults[path]))
        if problem is not None:
            wrong.append(problem)
    if wrong:
        raise ConfigError(wrong)
    cfg: ConfigContainer = build(flat, schema)
    return cfg


def _at(data: Any, path: FieldPath, default: Any) -> Any:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return default
        data = data[key]
    return data
