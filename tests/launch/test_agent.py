"""The agent: the run's exit code, who failed first, and signals to ranks; with real ranks that compute nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.launch import ROOT

# Ranks that use the part of the project that ends runs, and none of what trains.
RANK = """
import os, signal, sys, time
from pathlib import Path
from megatron_kd.runtime.exit_code import record_exit_code
case, run_dir, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]

def stop(number, frame):
    (run_dir / f"got_{rank}_{signal.Signals(number).name}").touch()
    if case == "killed":  # still starting up
        record_exit_code(run_dir, 75)
        raise SystemExit(75)

if case != "unready":
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
(run_dir / f"ready_{rank}").touch()
while not (run_dir / "ready_0").exists() or not (run_dir / "ready_1").exists():
    time.sleep(0.01)
if case == "fault":
    record_exit_code(run_dir, 17 if rank == "0" else 1)
    raise SystemExit(17 if rank == "0" else 1)
if case == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
while not (run_dir / f"got_{rank}_SIGTERM").exists() or not (run_dir / f"got_{rank}_SIGUSR1").exists():
    time.sleep(0.01)
record_exit_code(run_dir, 75)
raise SystemExit(75)
"""


def start(case: str, folder: Path) -> subprocess.Popen[str]:
    run_dir = folder / case
    run_dir.mkdir()
    (folder / "rank.py").write_text(RANK)
    words = [str(run_dir), "--standalone", "--nproc-per-node=2", str(folder / "rank.py"), case, str(run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_kd.launch.agent", *words], env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_until_ready(run_dir: Path, agent: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not ((run_dir / "ready_0").exists() and (run_dir / "ready_1").exists()):
        assert time.monotonic() < deadline and agent.poll() is None, "the ranks did not start"
        time.sleep(0.02)


@pytest.mark.slow
def test_codes_signals_and_the_rank_that_failed_first(tmp_path: Path) -> None:
    cases = ("fault", "killed", "signals", "unready")
    agents = {case: start(case, tmp_path) for case in cases}  # at once: most of their time is importing
    try:
        for case in ("signals", "unready"):
            wait_until_ready(tmp_path / case, agents[case])
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            agents["signals"].send_signal(number)
            time.sleep(0.1)
        agents["unready"].send_signal(signal.SIGHUP)
        while agents["signals"].poll() is None:  # after its ranks have gone, too
            agents["signals"].send_signal(signal.SIGUSR1)
            time.sleep(0.01)
        told = {case: agent.communicate(timeout=120)[1] for case, agent in agents.items()}
    finally:
        for agent in agents.values():
            agent.kill()
    codes = {case: agent.returncode for case, agent in agents.items()}
    assert codes == {"fault": 17, "killed": 1, "signals": 75, "unready": 75}
    assert {case: int((tmp_path / case / "exit_code").read_text()) for case in cases} == codes
    # torchrun asks the others to stop when one has gone; that is not what the run ended of.
    assert (tmp_path / "killed/got_0_SIGTERM").exists()
    assert "error: rank 1 was the first to fail here, at " in told["killed"]
    assert "killed by SIGKILL (local rank 1 on " in told["killed"]
    assert not any("Traceback" in text for text in told.values()), told
    for case in ("signals", "unready"):
        assert "first to fail" not in told[case], told[case]
