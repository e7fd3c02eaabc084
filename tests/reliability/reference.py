"""The reference run without faults, made once per row, and the comparison of faulty runs with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.faults.writes import operations
from tests.ranks import run_ranks
from tests.reliability.row import Draw
from tests.tiny import read_metrics, tiny_config
from tests.training.test_run_checkpoint import weights_of

_NAMES = ("step", "split", "loss", "logits_loss", "intermediate_loss", "grad_norm")

# Two replicas, so that both ranks write; dropout, so that random states count.
RUN: dict[str, Any] = {
    "iters": 6, "save": True, "save_interval": 2, "micro_batch_size": 4, "student": {"hidden_dropout": 0.1}
}  # fmt: skip


def exact(run_dir: Path) -> list[list[Any]]:
    """The logged records of a run in JSON types, each float exact to the last bit."""
    return [[_hex(record.get(name)) for name in _NAMES] for record in read_metrics(run_dir)]


def made_once(draw: Draw, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """The folder `draw.shared / name`, and the result of `make(folder)` in JSON types. The first draw makes both."""
    folder, answer = draw.shared / name, draw.shared / f"{name}.json"
    if not answer.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        answer.write_text(json.dumps(make(folder)))
    return folder, json.loads(answer.read_text())


def unbroken(draw: Draw, world_size: int = 2, **run: Any) -> tuple[Path, list[list[tuple[str, str]]]]:
    """The run of `tiny_config(folder, **{**RUN, **run})` without a fault.

    Returns:
        Its folder, and by rank the operations on files: [name, path from the folder].
    """
    values = {**RUN, **run}
    return made_once(draw, "unbroken", lambda folder: run_ranks(world_size, _counted, tiny_config(folder, **values)))


def same_as(whole: Path, run_dir: Path, step: int) -> None:
    """Check that a run has logged what another did, and has the weights of it after `step`, to the last bit."""
    same_losses(whole, run_dir)
    assert weights_of(run_dir, step) == weights_of(whole, step), "other weights"


def same_losses(whole: Path, run_dir: Path, records: int | None = None) -> None:
    """Check that a run has logged what another did, to the last bit; of that the first `records`, if given."""
    got, expected = exact(run_dir), exact(whole)[:records]
    apart = [(a, b) for a, b in zip_longest(got, expected) if a != b]
    assert not apart, f"other losses: {len(apart)} records differ, first {apart[0][0]} instead of {apart[0][1]}"


def _counted(cfg: Any) -> list[tuple[str, str]]:
    from megatron_kd.training.train import train

    folder = Path(cfg.logger.run_dir)
    with operations(folder) as seen:
        train(cfg)
    return [(operation.name, str(operation.path.relative_to(folder))) for operation in seen]


def _hex(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value
