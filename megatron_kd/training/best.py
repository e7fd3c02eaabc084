"""The best validation of a run: part of its state, and in `run_dir/best.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_kd.messages import going_on_without
from megatron_kd.runtime.files import replace_text


@dataclass(frozen=True)
class Best:
    """The lowest validation loss so far, and after how many steps it was measured."""

    step: int
    loss: float


def better(best: Best | None, step: int, values: Mapping[str, float]) -> Best | None:
    """`best`, or the validation after `step` steps if its loss is lower. A loss that is no number is never lower."""
    loss = values["loss"]
    return Best(step, loss) if loss == loss and (best is None or loss < best.loss) else best


def write_best(file: Path, best: Best | None) -> None:
    """Make the file say `best`. None, as after a resume from before the first validation, leaves no file.

    A disk that fails is told of: checkpoints hold the record, and the next start writes the file again.
    """
    with going_on_without(file):
        if best is None:
            file.unlink(missing_ok=True)
        else:
            replace_text(file, json.dumps(asdict(best)) + "\n")
