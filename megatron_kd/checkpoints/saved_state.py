"""`run_state.json`: what a resumed run needs beside its tensors, in a file that a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import RUN_STATE
from megatron_kd.errors import CheckpointCorrupt

# Orders of text. Today's follows from the epoch alone; older runs shuffled all epochs of their whole length together.
BY_EPOCH, TOGETHER = "by_epoch", "together"
_LATER = {"consumed_samples", "data_order", "inputs"}  # absent from older files


@dataclass(frozen=True)
class RunState:
    """The content of the file. A checkpoint of weights alone has the first three.

    Attributes:
        step: finished steps.
        vocab_size: token ids of the model, without padding.
        quantization: the fake quantisation that the model was trained with, if any; its scales are among the tensors.
        scheduler, balancer: the states of the schedule and of the loss balancer, numbers and texts.
        best: the validations so far, and the best of them; of earlier versions, the step and loss of the best.
        layout: sizes of the parallel layout by name; the random state is that of its ranks.
        consumed_samples: training samples that the steps have read. None, as the next, in an older checkpoint, whose
            batch was the same in each step.
        data_order: the order in which text is read, `BY_EPOCH` or `TOGETHER`.
        inputs: digests of the files that a field of the configuration names, by the field's dotted name.
    """

    step: int
    vocab_size: int
    quantization: str | None = None
    scheduler: Mapping[str, Any] | None = None
    balancer: Mapping[str, Any] | None = None
    best: Mapping[str, Any] | None = None
    layout: Mapping[str, int] = field(default_factory=dict)
    consumed_samples: int | None = None
    data_order: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The file's text. Floats are written so that they are read as the same number to the last bit."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_run_state(checkpoint: Path) -> RunState | None:
    """The content of a checkpoint's `run_state.json`; None where there is none, as in those of other programs.

    Raises:
        CheckpointCorrupt: not what such a file holds.
    """
    path = checkpoint / RUN_STATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _checked(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{path}: cannot be read as the state of a run: {error}") from error


def _checked(content: Any) -> RunState:
    names = {f.name for f in fields(RunState)}
    if not isinstance(content, dict) or not names - _LATER <= content.keys() <= names:
        raise ValueError("it has other fields")
    for name in ("step", "vocab_size"):
        if type(content[name]) is not int or content[name] < 0:
            raise ValueError(f"{name} is {content[name]!r}")
    for name in ("quantization", "data_order"):
        if not isinstance(content.get(name), str | None):
            raise ValueError(f"{name} is {content[name]!r}")
    if not isinstance(content.get("consumed_samples"), int | None):
        raise ValueError(f"consumed_samples is {content['consumed_samples']!r}")
    for name in ("scheduler", "balancer", "best", "layout", "inputs"):
        value = content.get(name, {})
        if not isinstance(value, dict) and not (value is None and name not in ("layout", "inputs")):
            raise ValueError(f"{name} is {value!r}")
    return RunState(**content)
