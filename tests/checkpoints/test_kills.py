"""`kill -9` inside a save, and while an old checkpoint is deleted: the run resumes, bitwise, from the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Kill, killed_run, train_on
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read
from tests.training.test_run_checkpoint import losses, weights_of

pytestmark = pytest.mark.slow  # whole runs on several ranks

RUN: dict[str, Any] = {
    "iters": 6, "save": True, "save_interval": 2, "micro_batch_size": 4, "student": {"hidden_dropout": 0.1}
}  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    """Losses and final weights of a run that was not killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    records = run_ranks(2, train_and_read, tiny_config(folder, **RUN))[0]
    return losses(records), weights_of(folder, 6)


@pytest.mark.parametrize(
    ("killed", "left", "from_step"),
    [
        (Kill(0, "write", "0000004.partial", 3), "iter_0000004.partial", 2),  # half a tensor
        (Kill(1, "sync", "0000004.partial"), "iter_0000004.partial", 2),
        (Kill(0, "write", "manifest.json", 1), "iter_0000004.partial", 2),
        (Kill(0, "rename", "0000006.partial"), "iter_0000006.partial", 4),
        (Kill(0, "delete", "0000002.deleted"), "iter_0000002.deleted", 6),
    ],
)
def test_a_killed_run_goes_on_bitwise(killed: Kill, left: str, from_step: int, unbroken: tuple, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, most_recent_k=2, **RUN)
    killed_run(2, cfg, killed)
    folder = tmp_path / "checkpoints"
    assert [path for path in folder.glob(".*") if left in path.name]
    first = run_ranks(2, train_on, cfg)[0]
    assert first.step == from_step
    assert not list(folder.glob(".*"))
    assert (losses(first.records), weights_of(tmp_path, 6)) == unbroken
