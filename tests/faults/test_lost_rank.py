"""A rank that is stopped or killed anywhere in a step ends the run within the timeout, and is named with the phase."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from tests.faults.instants import Instant
from tests.faults.legs import Fault
from tests.faults.lost import BEATS_S, check_stacks, check_told, run_until_lost, seconds_until_told
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_config

TIMEOUT_S = 3
ALLOWED_S = 2  # of the promise: the group's timeout and 2 s
BUSY_S = 3  # what a machine with other work on it may add

CASES = [
    ("TP2", signal.SIGSTOP, "forward and backward"),
    ("PP2", signal.SIGSTOP, "forward and backward"),
    ("DP2", signal.SIGSTOP, "reducing gradients"),
    ("DP2", signal.SIGSTOP, "saving a checkpoint"),
    ("DP2", signal.SIGKILL, "forward and backward"),
    ("gpu0", signal.SIGKILL, "teacher hand-over"),
]
LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {"micro_batch_size": 4},
    "TP2": {"tp": 2},
    "PP2": {"pp": 2, "micro_batch_size": 4},
    "gpu0": {"micro_batch_size": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "number", "phase"), CASES)
def test_the_others_name_it_within_the_timeout(layout: str, number: signal.Signals, phase: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "run", save=True, save_interval=1, **LAYOUTS[layout])
    cfg.dist.step_timeout_s = cfg.dist.checkpoint_timeout_s = TIMEOUT_S
    if layout == "gpu0":
        cfg.model.teacher_device_strategy, cfg.model.teacher_rank = "gpu0", 1
    fault = Fault(1, Instant("phase", phase=phase, step=2), number, BEATS_S)
    run_until_lost(2, cfg, fault, tmp_path, timeout=60)
    waited = TIMEOUT_S if number == signal.SIGSTOP else 0
    assert seconds_until_told(tmp_path, 0) < waited + ALLOWED_S + BUSY_S
    check_told(tmp_path, 0, fault)
    check_stacks(tmp_path / "run", 0)
    assert (tmp_path / "run" / "exit_code").read_text().strip() == "1"


def waits_for_ever(cfg: ConfigContainer, folder: Path) -> None:
    """On a rank: run `cfg`; rank 1's main thread hangs in step 2, as in a kernel; its other threads continue."""
    from megatron_kd import main

    def hang() -> None:
        (folder / "hit").touch()
        time.sleep(60)

    def hang_in_the_update(run: Any) -> None:
        if run.layout.rank == 1 and run.step + 1 == 2:
            run.optimizer.prepare_grads = hang

    with (folder / f"told_{os.environ['RANK']}").open("w") as file:
        os.dup2(file.fileno(), 2)
    main(lambda: cfg, [], hooks=[On(before_step=hang_in_the_update)])


@pytest.mark.slow
def test_a_rank_whose_main_thread_hangs_ends_itself(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "run", micro_batch_size=4)
    cfg.dist.step_timeout_s = TIMEOUT_S
    with pytest.raises(RankFailed, match="rank 1\ndied with exit code 1"):
        run_ranks(2, waits_for_ever, cfg, tmp_path, timeout=60)
    assert (tmp_path / "hit").exists(), "the fault did not hit"
    named = r"rank 1: step 2, optimizer step: .*nothing happened for [34]\.\d s, and all ranks respond: .*1 in step 2"
    assert re.search(named, (tmp_path / "told_1").read_text())
    assert "in hang" in (tmp_path / "run" / "stacks" / "rank_1.txt").read_text()
