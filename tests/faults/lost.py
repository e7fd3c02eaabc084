"""Ranks that are stopped or killed, what the others say of them, and how soon."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from tests.faults.legs import Fault, leg
from tests.ranks import RankFailed, run_ranks

BEATS_S = 1.0  # in which a rank has said where it is


def lost_leg(cfg: ConfigContainer, faults: Sequence[Fault], folder: Path) -> int:
    """`leg`, whose stderr goes to `told_RANK` in the folder, and which ends the process."""
    rank = int(os.environ["RANK"])
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    with (folder / f"told_{rank}").open("w") as file:
        os.dup2(file.fileno(), 2)
    code = leg(cfg, faults, folder)
    sys.stderr.flush()
    for fault in faults:  # no launcher need wait for one that is stopped
        if fault.signal == signal.SIGSTOP:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((folder / f"pid_{fault.rank}").read_text()), signal.SIGKILL)
    os._exit(code)


def run_until_lost(world_size: int, cfg: ConfigContainer, fault: Fault, folder: Path, timeout: float = 40) -> None:
    """Run `cfg` on forked ranks until they have ended because of `fault`; they have `timeout` seconds.

    Raises:
        AssertionError: another rank than that of `fault` does not end with exit code 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [rank for rank in range(world_size) if rank != fault.rank]
    try:
        run_ranks(world_size, lost_leg, cfg, [fault], folder, timeout=timeout, last_words=8)
    except RankFailed as failure:
        ended = str(failure)
    else:
        raise AssertionError(f"{fault} did not hit")
    assert (folder / "hits").exists(), f"{fault} did not hit: {ended}"
    for rank in others:
        told = (folder / f"told_{rank}").read_text()
        assert re.search(rf"rank {rank}\ndied with exit code 1(\n|$)", ended), (
            f"rank {rank} has not ended: {told}{ended}"
        )


def seconds_until_told(folder: Path, rank: int) -> float:
    """From the fault until a rank has said what it met."""
    return (folder / f"told_{rank}").stat().st_mtime - (folder / "hits").stat().st_mtime


def check_told(folder: Path, rank: int, fault: Fault) -> None:
    """Check that a rank has named the one that is lost, and where it was, in plain words."""
    told = (folder / f"told_{rank}").read_text()
    who = "error" if rank == 0 else f"rank {rank}"
    step, phase = fault.instant.step, fault.instant.phase
    lost = rf"rank {fault.rank} died or does not respond"
    named = rf"{who}: step \d+, [a-z -]+: {lost} \(.*, last seen in step {step}, {phase}"
    assert re.search(named, told), f"rank {fault.rank} is not named: {told}"
    assert "Traceback" not in told, f"not in plain words: {told}"


def check_stacks(run_dir: Path, rank: int) -> None:
    """Check that a rank has written where its threads were."""
    file = run_dir / "stacks" / f"rank_{rank}.txt"
    stacks = file.read_text() if file.exists() else ""
    assert " in train\n" in stacks and "most recent call first" in stacks, f"no stacks of rank {rank}: {stacks[-500:]}"
