"""Jobs of the tiny recipe in a SLURM of the tests: submitted, preempted in each way there is, and waited for."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from megatron_kd.commands.cli import main
from megatron_kd.resolve.recipe_files import load_recipe
from tests.recipes.launch import ROOT
from tests.slurm_cluster import Cluster, wait_until

RECIPE = str(ROOT / "recipes/tiny/distill_tiny.py")
STEPS = 150
WAIT_S = 300  # for what takes 20 s where nothing else runs
WORDS = [
    *("dataset.mock=true", "dataset.train_data_path=null", "dataset.valid_data_path=null"),
    *("tokenizer.tokenizer_model=null", "model.vocab_size=256", "model.teacher.vocab_size=256"),
    *("model.teacher.checkpoint=null", "model.teacher.init=random", "model.teacher_device_strategy=colocated"),
    *("model.seq_length=16", "model.teacher.seq_length=16", f"train.train_iters={STEPS}"),
    *("model.num_layers=1", "model.teacher.num_layers=1", "train.global_batch_size=4", "train.micro_batch_size=2"),
    *("checkpoint.save_interval=1000", "checkpoint.most_recent_k=null", "validation.eval_iters=1"),
    *("logger.log_interval=1", "logger.tensorboard=false", "dist.num_threads=1"),
]
# The recipe, whose steps are slow while a file exists: SLURM checks time limits twice a minute.
SLOWED = f"""\
import os, time
from pathlib import Path
from megatron_kd import main
from megatron_kd.resolve.recipe_files import load_recipe

recipe = load_recipe({RECIPE!r})

if __name__ == "__main__":
    from megatron_kd.runtime.watch import Doing
    enter = Doing.enter

    def enter_slowly(doing, phase, step=None):
        enter(doing, phase, step)
        if phase == "forward and backward" and Path(os.environ["SLOWED_BY"]).exists():
            time.sleep(0.4)

    Doing.enter = enter_slowly
    raise SystemExit(main(recipe))
"""


@dataclass
class Preempted:
    """The result of a chain of preemptions.

    Attributes:
        job: its number.
        saved: the step of the checkpoint that each one left.
    """

    job: str
    saved: list[int] = field(default_factory=list)


def by_signal(cluster: Cluster, job: str) -> None:
    """As a partition does that preempts with a grace time: the ranks get a signal, the job requeues itself."""
    cluster.command("scancel", "--signal=USR1", job)


def by_requeue(cluster: Cluster, job: str) -> None:
    """As an administrator does: SLURM stops the job, and puts it into the queue."""
    cluster.command("scontrol", "requeue", job)


def by_time_limit(cluster: Cluster, job: str) -> None:
    """The limit comes as near as the template's --signal=USR1@120 waits for; SLURM then tells the ranks."""
    cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=2")


@contextmanager
def submitting(cluster: Cluster, slowed_by: Path) -> Iterator[None]:
    """The environment of a job."""
    variables = {"SLURM_CONF": str(cluster.conf), "PYTHONPATH": str(ROOT), "SLOWED_BY": str(slowed_by)}
    with mock.patch.dict(os.environ, variables):
        yield


def submitted(*words: str) -> str:
    """The number of the job that `megatron-kd launch --slurm` submits."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["launch", "--slurm", *words]) == 0
    found = re.search(r"as job (\d+)$", printed.getvalue())
    assert found is not None
    return found.group(1)


def preempted_chain(cluster: Cluster, folder: Path, kinds: list[str]) -> Preempted:
    """Have one job of two nodes preempted once in each of `kinds` (of `KINDS`), and wait for its end.

    The run's folder is `folder / "a run"`.

    Raises:
        AssertionError: it was not preempted and put back into the queue each time, or did not end well.
    """
    run_dir, slowed_by = folder / "a run", folder / "slow"
    slowed_by.touch()
    (folder / "slowed.py").write_text(SLOWED)
    with submitting(cluster, slowed_by):
        words = ["--nodes=2", "--nproc=1", "--time=1-0", *WORDS, f"logger.run_dir={run_dir}"]
        chain = Preempted(submitted(str(folder / "slowed.py"), *words))
    for attempt, kind in enumerate(kinds):
        last = chain.saved[-1] if chain.saved else 0
        _wait_for_steps(cluster, chain.job, run_dir, last + 3)
        KINDS[kind](cluster, chain.job)
        _wait_for_attempt(cluster, chain.job, run_dir, attempt + 1)
        found = sorted(int(path.name[-7:]) for path in (run_dir / "checkpoints").glob("iter_*"))
        assert found[:-1] == chain.saved and last < found[-1] < STEPS, f"{kind}: not on its way, saved {found}"
        chain.saved = found
    slowed_by.unlink()

    def over_or_again() -> bool:
        state = cluster.job(chain.job)
        return state["JobState"] in _OVER or int(state["Restarts"]) > len(kinds)

    wait_until(over_or_again, WAIT_S, lambda: told_last(run_dir))
    state = cluster.job(chain.job)
    assert state["Restarts"] == str(len(kinds)), f"it went back into the queue {state['Restarts']} times"
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), state
    return chain


KINDS = {"signal": by_signal, "requeue": by_requeue, "time limit": by_time_limit}
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def _wait_for_steps(cluster: Cluster, job: str, run_dir: Path, steps: int) -> None:
    def logged_or_over() -> bool:
        return has_logged(run_dir, steps) or _state(cluster, job) in _OVER

    wait_until(logged_or_over, WAIT_S, lambda: told_last(run_dir))
    assert has_logged(run_dir, steps), f"the job is {_state(cluster, job)} before step {steps}:\n{told_last(run_dir)}"


def _wait_for_attempt(cluster: Cluster, job: str, run_dir: Path, number: int) -> None:
    def started_or_over() -> bool:
        state = _state(cluster, job)
        if state == "PENDING":  # or its next attempt would get the signal at once
            cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=1-0")
        return (run_dir / "slurm" / f"{job}.{number}").exists() or state in _OVER

    wait_until(started_or_over, WAIT_S, lambda: told_last(run_dir))
    assert (run_dir / "slurm" / f"{job}.{number}").exists(), (
        f"the job did not go back into the queue, but is {_state(cluster, job)}:\n{told_last(run_dir)}"
    )


def _state(cluster: Cluster, job: str) -> str:
    return cluster.job(job)["JobState"]


def output(run_dir: Path) -> str:
    """The output of a run's jobs."""
    return "\n".join(path.read_text() for path in (run_dir / "slurm").glob("*.out"))


def told_last(run_dir: Path) -> str:
    """The end of that."""
    return output(run_dir)[-3000:]


def has_logged(run_dir: Path, steps: int) -> bool:
    """Whether a run has logged this many steps."""
    file = run_dir / "metrics.jsonl"
    return file.exists() and len(file.read_text().splitlines()) >= steps


def run_unbroken(run_dir: Path, words: Sequence[str] = ()) -> int:
    """On a rank: the whole run, with further overrides."""
    from megatron_kd.entry import main as run

    return run(load_recipe(RECIPE), [*WORDS, *words, f"logger.run_dir={run_dir}", "logger.progress=off"])
