"""A rank that dies or hangs in a hand-over ends the run, and the message names it and the phase."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import _free_port

ROOT = Path(__file__).parents[2]

# The teacher's rank stops for good when it is about to send; the fault writes down that it has hit.
SCRIPT = """
import os, signal, sys
from pathlib import Path

from megatron_kd import main
from megatron_kd.teachers import handover
from tests.teachers.test_strategies import placed_config

FOLDER, SIGNAL = Path(sys.argv[1]), int(sys.argv[2])
original = handover._exchange_buffers
calls = 0

def stop_in_the_second_step(sent, arriving):
    global calls
    calls += 1
    if calls == 3 and os.environ["RANK"] == "1":
        (FOLDER / "hit").touch()
        os.kill(os.getpid(), SIGNAL)
    return original(sent, arriving)

handover._exchange_buffers = stop_in_the_second_step

def recipe():
    cfg = placed_config(FOLDER / "run", {"micro_batch_size": 2}, {"strategy": "gpu0", "rank": 1})
    cfg.dist.step_timeout_s = 5
    return cfg

if __name__ == "__main__":
    raise SystemExit(main(recipe, []))
"""


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_the_survivor_names_the_rank_and_the_phase_within_the_timeout(fault: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(int(fault))],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "hit").exists():
            assert time.monotonic() < deadline, "the fault did not hit"
            time.sleep(0.05)
        hit = time.monotonic()
        _, told = ranks[0].communicate(timeout=60)
        # The timeout and what a busy machine needs to end a process; without it, half an hour.
        assert time.monotonic() - hit < 5 + 25
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 1
    assert re.search(r"error: step 2, teacher hand-over: rank 1 died or does not answer", told), told
    assert "Traceback" not in told
    assert (tmp_path / "run" / "exit_code").read_text().strip() == "1"
