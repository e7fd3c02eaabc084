"""Jobs in a real SLURM: preempted, requeued, resumed, and bitwise as if nothing had happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.training.pace import MEASURED_TIMES
from tests.launch.jobs import (
    RECIPE,
    WAIT_S,
    WORDS,
    output,
    preempted_chain,
    run_unbroken,
    submitted,
    submitting,
    told_last,
)
from tests.launch.test_agent import RANK
from tests.ranks import run_ranks
from tests.slurm_cluster import Cluster, running_cluster, wait_until
from tests.tiny import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    with running_cluster(2) as running:
        yield running


def exact(run_dir: Path) -> list[dict[str, Any]]:
    """The log of a run, each float to its last bit, without times."""
    records = [{k: v for k, v in r.items() if k not in MEASURED_TIMES} for r in read_metrics(run_dir)]
    return [{k: v.hex() if isinstance(v, float) else v for k, v in record.items()} for record in records]


def test_a_job_that_is_preempted_twice_is_the_run_that_was_not(cluster: Cluster, tmp_path: Path) -> None:
    """By its time limit, by the template's --signal, and from outside. At SLURM's signal, ranks save and the job
    puts itself back into the queue; requeued from outside, SLURM does, and once."""
    chain, run_dir = preempted_chain(cluster, tmp_path, ["time limit", "requeue"]), tmp_path / "a run"
    assert (run_dir / "exit_code").read_text() == "0\n"
    told = output(run_dir)
    assert told.count("back into the queue") == 1 and told.count("steps are done and saved") >= 2, told
    assert all(f"continues from {run_dir}/checkpoints/iter_{step:07d}" in told for step in chain.saved)
    for attempt in range(3):  # a log a rank and attempt
        logs = (run_dir / "slurm" / f"{chain.job}.{attempt}").glob("node*/*/attempt_0/0/stdout.log")
        assert len(list(logs)) == 2
    assert run_ranks(2, run_unbroken, tmp_path / "unbroken") == [0, 0]
    assert exact(run_dir) == exact(tmp_path / "unbroken")


def test_a_job_that_is_cancelled_stays_so(cluster: Cluster, tmp_path: Path) -> None:
    """Its ranks end with 75 all the same. They compute nothing here: the launcher never asks what they are."""
    run_dir = tmp_path / "run"
    with submitting(cluster, tmp_path / "slow"):
        job = submitted(RECIPE, "--nproc=2", *WORDS, f"logger.run_dir={run_dir}", "--sbatch=hold")
    script = run_dir / "slurm" / "distill.sbatch"
    (tmp_path / "rank.py").write_text(RANK)
    cluster.command("scancel", job)
    text = re.sub(r"(?m)^RECIPE=.*", f"RECIPE={tmp_path}/rank.py", script.read_text()).replace("#SBATCH --hold\n", "")
    script.write_text(re.sub(r"(?m)^OVERRIDES=.*", f"OVERRIDES=(signals {run_dir})", text))
    with submitting(cluster, tmp_path / "slow"):
        job = cluster.command("sbatch", "--parsable", str(script)).strip()
    wait_until(lambda: all((run_dir / f"ready_{r}").exists() for r in "01"), WAIT_S, lambda: told_last(run_dir))
    cluster.command("scancel", "--signal=USR1", job)
    wait_until(lambda: all((run_dir / f"got_{r}_SIGUSR1").exists() for r in "01"), 20, lambda: told_last(run_dir))
    cluster.command("scancel", job)
    wait_until(
        lambda: not cluster.command("squeue", "--noheader", f"--jobs={job}").strip(), 60, lambda: output(run_dir)
    )
    assert (run_dir / "exit_code").read_text() == "75\n"
    assert cluster.job(job)["JobState"] == "CANCELLED" and cluster.job(job)["Restarts"] == "0"
    assert "back into the queue" not in output(run_dir)
