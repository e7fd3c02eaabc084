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
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_config

TIMEOUT_S = 3
ALLOWED_S = 2  # of the promise: the group's timeout and 2 s
BUSY_S = 3  # what a machine with other work on it may add
BEATS_S = 1  # in which a rank has said where it is


def run_until_lost(cfg: ConfigContainer, phase: str, fault: int, folder: Path) -> None:
    """On a rank: run `cfg`; rank 1 sends itself the signal `fault` when step 2 comes to `phase`."""
    from megatron_kd import main
    from megatron_kd.runtime.watch import Doing

    rank, enter = int(os.environ["RANK"]), Doing.enter
    (folder / f"pid_{rank}").write_text(str(os.getpid()))

    def enter_and_stop(doing: Doing, name: str, step: int | None = None) -> None:
        enter(doing, name, step)
        if rank == 1 and (doing.step, name) == (2, phase):
            time.sleep(BEATS_S)
            (folder / "hit").write_text(repr(time.time()))
            os.kill(os.getpid(), fault)

    Doing.enter = enter_and_stop  # type: ignore[method-assign]
    with (folder / f"told_{rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    code = main(lambda: cfg, [])
    if rank == 0 and fault == signal.SIGSTOP:  # the test need not wait for it
        os.kill(int((folder / "pid_1").read_text()), signal.SIGKILL)
    os._exit(code)


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
@pytest.mark.parametrize(("layout", "fault", "phase"), CASES)
def test_the_others_name_it_within_the_timeout(layout: str, fault: signal.Signals, phase: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "run", save=True, save_interval=1, **LAYOUTS[layout])
    cfg.dist.step_timeout_s = cfg.dist.checkpoint_timeout_s = TIMEOUT_S
    if layout == "gpu0":
        cfg.model.teacher_device_strategy, cfg.model.teacher_rank = "gpu0", 1
    with pytest.raises(RankFailed, match=r"rank 0\ndied with exit code 1(\n|$)"):
        run_ranks(2, run_until_lost, cfg, phase, fault, tmp_path, timeout=60, last_words=8)
    assert (tmp_path / "hit").exists(), "the fault did not hit"
    told, at = (tmp_path / "told_0").read_text(), (tmp_path / "told_0").stat().st_mtime
    waited = TIMEOUT_S if fault == signal.SIGSTOP else 0
    assert at - float((tmp_path / "hit").read_text()) < waited + ALLOWED_S + BUSY_S
    named = rf"error: step [23], [a-z -]+: rank 1 died or does not answer \(.*, last seen in step 2, {phase}\)"
    assert re.search(named, told) and "Traceback" not in told, told
    stacks = (tmp_path / "run" / "stacks" / "rank_0.txt").read_text()
    assert "_loop" in stacks and "most recent call first" in stacks
    assert (tmp_path / "run" / "exit_code").read_text().strip() == "1"


def waits_for_ever(cfg: ConfigContainer, folder: Path) -> None:
    """On a rank: run `cfg`; rank 1's main thread hangs in step 2, as in a kernel; its other threads go on."""
    import megatron_kd.training.step as step_module
    from megatron_kd import main

    rank, update = int(os.environ["RANK"]), step_module.update

    def hang(optimizer: Any) -> float:
        if rank == 1 and (folder / "once_1").exists():
            (folder / "hit").touch()
            time.sleep(60)
        (folder / f"once_{rank}").touch()
        return update(optimizer)

    step_module.update = hang
    with (folder / f"told_{rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    main(lambda: cfg, [])


@pytest.mark.slow
def test_a_rank_whose_main_thread_hangs_ends_itself(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / "run", micro_batch_size=4)
    cfg.dist.step_timeout_s = TIMEOUT_S
    with pytest.raises(RankFailed, match="rank 1\ndied with exit code 1"):
        run_ranks(2, waits_for_ever, cfg, tmp_path, timeout=60)
    assert (tmp_path / "hit").exists(), "the fault did not hit"
    named = (
        r"rank 1: step 2, optimizer step: .*nothing happened for [34]\.\d s, and all ranks were heard of: .*1 in step 2"
    )
    assert re.search(named, (tmp_path / "told_1").read_text())
    assert "in hang" in (tmp_path / "run" / "stacks" / "rank_1.txt").read_text()
