"""The best validation of real runs: its checkpoint outlives deletions, kills and saves in the background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.config.container import ConfigContainer
from tests.faults.runs import Kill, train_and_die
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.test_run import without_times
from tests.tiny import read_metrics, tiny_config, train_and_read

ITERS = 5
BEST = 2  # of this learning rate; the tests work it out from the lines, too


def config(run_dir: Path, *, patience: int | None = None, **checkpoint: Any) -> ConfigContainer:
    cfg = tiny_config(run_dir, iters=ITERS, **{"save": True, "save_interval": 1, "most_recent_k": 1, **checkpoint})
    cfg.validation.eval_interval, cfg.validation.patience = 1, patience
    cfg.optimizer.lr = 0.5  # soon too high
    return cfg


def best_of(run_dir: Path) -> int:
    """The step that `best.json` names, which must be that of the lines, and have its checkpoint."""
    measured = {r["step"]: r["teacher_kl"] for r in read_metrics(run_dir) if r["split"] == "validation"}
    said = json.loads((run_dir / "best.json").read_text())
    assert said["step"] == min(measured, key=lambda step: measured[step])
    assert Path(said["checkpoint"]).is_dir()
    return said["step"]


def saved(run_dir: Path) -> list[int]:
    return list(complete_checkpoints(run_dir / "checkpoints"))


@pytest.mark.parametrize("interval", [1, 100])
def test_saves_in_the_background_keep_the_best(interval: int, tmp_path: Path) -> None:
    run_ranks(1, train_and_read, config(tmp_path, async_save=True, save_best=True, save_interval=interval))
    assert best_of(tmp_path) == BEST and saved(tmp_path) == [BEST, ITERS]


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_a_kill_between_a_save_and_a_deletion_does_not_lose_the_best(number: int, tmp_path: Path) -> None:
    """At each renaming of a checkpoint from the second save on: one is completed, or about to be deleted."""
    with pytest.raises(RankFailed, match="exit code -9"):
        run_ranks(1, train_and_die, config(tmp_path), Kill(0, "rename", "checkpoints", number))
    newest = saved(tmp_path)[-1]
    state = json.loads((tmp_path / f"checkpoints/iter_{newest:07d}/run_state.json").read_text())
    assert state["best"]["saved"]["step"] in saved(tmp_path)
    run_ranks(1, train_and_read, config(tmp_path))
    assert best_of(tmp_path) == BEST and saved(tmp_path) == [BEST, ITERS]


def preempted(cfg: ConfigContainer, step: int) -> None:
    """On a rank: run `cfg`, which is asked to stop within `step`."""
    import os
    import signal

    from megatron_kd.errors import Preempted
    from megatron_kd.training.train import train

    def ask(run: Any) -> None:
        if run.step == step - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Preempted):
        train(cfg, [On(before_step=ask)])


def killed(cfg: ConfigContainer, step: int) -> None:
    """On a rank: run `cfg`, and end as `kill -9` does before the step after `step`."""
    import os
    import signal

    from megatron_kd.training.train import train

    train(cfg, [On(before_step=lambda run: run.step == step and os.kill(os.getpid(), signal.SIGKILL))])


@pytest.mark.slow
def test_a_validation_that_an_attempt_had_no_time_for_is_not_lost_with_the_next_one(tmp_path: Path) -> None:
    """Stopped before the validation of the best step; the next attempt makes up for it, and is killed unsaved."""
    cfg = config(tmp_path / "run", save_interval=100, patience=2)
    run_ranks(1, preempted, cfg, BEST)
    with pytest.raises(RankFailed, match="exit code -9"):
        run_ranks(1, killed, cfg, BEST)
    assert best_of(tmp_path / "run") == BEST
    run_ranks(1, train_and_read, cfg)
    unbroken = config(tmp_path / "unbroken", save_interval=100, patience=2)
    run_ranks(1, train_and_read, unbroken)
    lines = [without_times(read_metrics(tmp_path / name)) for name in ("run", "unbroken")]
    assert lines[0] == lines[1] and lines[0][-1]["step"] == BEST + 2
    assert best_of(tmp_path / "run") == BEST and saved(tmp_path / "run") == [BEST, BEST + 2]
