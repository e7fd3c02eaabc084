"""The local launcher: when it starts a run again, what it passes on, and that an old exit code is never a new one's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_kd.launch.local import Attempt, LocalLauncher, newest_step, why_again
from tests.launch.jobs import RECIPE, WORDS, run_unbroken
from tests.ranks import run_ranks
from tests.recipes.launch import run
from tests.reliability.reference import same_as


@pytest.mark.parametrize(
    ("code", "progressed", "stopped", "left", "again"),
    [
        (0, True, False, 3, False),
        (75, False, False, 0, True),  # without progress, too: it has not failed
        (75, True, True, 3, False),  # it is the launcher that was asked to stop
        (1, True, False, 1, True),
        (1, True, False, 0, False),
        (1, False, False, 3, False),  # it would fail at the same place
        (1, True, True, 3, False),
        (2, True, False, 3, False),
        (17, True, False, 3, False),
        (18, True, False, 3, False),
        (134, True, False, 3, True),  # whatever else a process may end with
    ],
)
def test_when_a_run_is_started_again(code: int, progressed: bool, stopped: bool, left: int, again: bool) -> None:
    assert (why_again(Attempt(code, progressed, stopped), left) is not None) is again


# Stands for an agent with its ranks: attempt N ends with the Nth code and leaves the Nth list of checkpoints.
AGENT = """
import sys
from pathlib import Path
run_dir, codes, saved = Path(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[3])
with (run_dir / "attempts").open("a") as file:
    file.write(f"{(run_dir / 'exit_code').exists()}\\n")
number = len((run_dir / "attempts").read_text().splitlines()) - 1
for step in saved[number]:
    (run_dir / "checkpoints" / f"iter_{step:07d}").mkdir(parents=True)
(run_dir / "exit_code").write_text(f"{codes[number]}\\n")
raise SystemExit(codes[number])
"""


@pytest.mark.parametrize(
    ("codes", "saved", "restarts", "attempts"),
    [
        ([75, 75, 0], [[], [], [5]], 0, 3),
        ([1, 1, 0], [[5], [10], [15]], 2, 3),
        ([1, 1, 0], [[5], [10], [15]], 1, 2),
        ([1, 1, 0], [[5], [], []], 3, 2),
        ([75, 1, 17], [[5], [10], []], 3, 3),
    ],
)
def test_attempts(codes: list[int], saved: list[list[int]], restarts: int, attempts: int, tmp_path: Path) -> None:
    (tmp_path / "exit_code").write_text("17\n")  # of an earlier run
    launcher = LocalLauncher(tmp_path, [sys.executable, "-c", AGENT, str(tmp_path), repr(codes), repr(saved)])
    assert launcher.run(restarts) == codes[attempts - 1]
    assert (tmp_path / "attempts").read_text().splitlines() == ["False"] * attempts


def test_a_refused_attempt_leaves_the_exit_code_of_the_run_before(tmp_path: Path) -> None:
    (tmp_path / "exit_code").write_text("0\n")
    assert LocalLauncher(tmp_path, [sys.executable, "-c", "raise SystemExit(2)"]).run(3) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["exit_code"]
    assert (tmp_path / "exit_code").read_text() == "0\n"


WAITS = """
import signal, sys, time
from pathlib import Path
folder, seen = Path(sys.argv[1]), []
for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda number, frame: seen.append(signal.Signals(number).name))
(folder / "ready").touch()
while len(seen) < 2:
    time.sleep(0.01)
(folder / "seen").write_text(" ".join(seen))
raise SystemExit(75)
"""


def test_signals_are_passed_on_and_then_nothing_is_started_again(tmp_path: Path) -> None:
    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGHUP)

    sender = threading.Thread(target=send)
    sender.start()
    before = signal.getsignal(signal.SIGHUP)
    assert LocalLauncher(tmp_path, [sys.executable, "-c", WAITS, str(tmp_path)]).run(3) == 75
    sender.join()
    assert (tmp_path / "seen").read_text() == "SIGUSR1 SIGHUP"
    assert signal.getsignal(signal.SIGHUP) == before


def test_an_agent_that_was_killed_is_a_run_that_failed(tmp_path: Path) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert LocalLauncher(tmp_path, [sys.executable, "-c", script]).run(3) == 1


def test_the_newest_checkpoint_is_a_complete_one(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    for name in ("iter_0000005", "iter_0000010", ".iter_0000020.partial", "iter_0000030.corrupt"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 10


# The tiny recipe; on its first attempt, rank 1 is killed in the middle of a step, as by a kernel out of memory.
KILLED = f"""\
import os, signal
from pathlib import Path
from megatron_kd import main
from megatron_kd.resolve.recipe_files import load_recipe

recipe = load_recipe({RECIPE!r})

if __name__ == "__main__":
    from megatron_kd.runtime.watch import Doing
    enter, marker = Doing.enter, Path(__file__).with_name("killed")

    def enter_and_die(doing, phase, step=None):
        enter(doing, phase, step)
        if os.environ["RANK"] == "1" and (doing.step, phase) == (8, "optimizer step") and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Doing.enter = enter_and_die
    raise SystemExit(main(recipe))
"""


@pytest.mark.slow
def test_a_run_whose_rank_was_killed_is_started_again_and_is_the_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    few = ["train.train_iters=12", "checkpoint.save_interval=5", "scheduler.lr_decay_iters=12"]
    words = ["launch", "--local", "killed.py", "--nproc=2", "--max-restarts=1", *WORDS, *few, "logger.run_dir=run"]
    done = run(["-m", "megatron_kd.commands.cli", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert "error: rank 1 was the first to fail here" in done.stderr and "killed by SIGKILL" in done.stderr
    assert done.stderr.count("starting the run again: it failed with exit code 1, after a new checkpoint") == 1
    assert "continues from run/checkpoints/iter_0000005" in done.stdout + done.stderr
    assert (tmp_path / "run/exit_code").read_text() == "0\n"
    assert run_ranks(2, run_unbroken, tmp_path / "unbroken", few) == [0, 0]
    same_as(tmp_path / "unbroken", tmp_path / "run", 12)
