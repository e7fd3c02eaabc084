"""Jobs in a real SLURM: preempted, requeued, resumed, and bitwise as if nothing had been."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.cli import main
from megatron_kd.config.recipe_files import load_recipe
from tests.launch.test_agent import RANK
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT
from tests.slurm_cluster import Cluster, running_cluster, wait_until
from tests.tiny import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RECIPE = str(ROOT / "recipes/tiny/distill_tiny.py")
STEPS = 150
WAIT_S = 400  # for what takes 10 s where nothing else runs
WORDS = [
    *("dataset.mock=true", "dataset.train_data_path=null", "dataset.valid_data_path=null"),
    *("tokenizer.tokenizer_model=null", "model.vocab_size=256", "model.teacher.vocab_size=256"),
    *("model.teacher.checkpoint=null", "model.teacher.init=random", "model.teacher_device_strategy=colocated"),
    *("model.seq_length=16", "model.teacher.seq_length=16", f"train.train_iters={STEPS}"),
    *("model.num_layers=1", "model.teacher.num_layers=1", "train.global_batch_size=4", "train.micro_batch_size=2"),
    *("checkpoint.save_interval=1000", "checkpoint.most_recent_k=null", "validation.eval_iters=1"),
    *("logger.log_interval=1", "logger.tensorboard=false", "dist.num_threads=1"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes."""
    with running_cluster(2) as running:
        yield running


@pytest.fixture(autouse=True)
def submitting(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job takes along from where it is submitted."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def submitted(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The number of the job that `megatron-kd launch --slurm` submits."""
    assert main(["launch", "--slurm", *words]) == 0
    found = re.search(r"as job (\d+)$", capsys.readouterr().out)
    assert found is not None
    return found.group(1)


def output(run_dir: Path) -> str:
    """What jobs of a run have printed."""
    return "\n".join(path.read_text() for path in (run_dir / "slurm").glob("*.out"))


def told_last(run_dir: Path) -> str:
    """The end of that."""
    return output(run_dir)[-3000:]


def has_logged(run_dir: Path, steps: int) -> bool:
    """Whether a run has logged this many steps."""
    file = run_dir / "metrics.jsonl"
    return file.exists() and len(file.read_text().splitlines()) >= steps


def exact(run_dir: Path) -> list[dict[str, Any]]:
    """What a run has logged, each float to its last bit, without times."""
    records = [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second")} for r in read_metrics(run_dir)]
    return [{k: v.hex() if isinstance(v, float) else v for k, v in record.items()} for record in records]


def run_unbroken(run_dir: Path) -> int:
    """On a rank: the whole run."""
    from megatron_kd.entry import main as run

    return run(load_recipe(RECIPE), [*WORDS, f"logger.run_dir={run_dir}", "logger.progress=off"])


def test_a_job_that_is_preempted_twice_is_the_run_that_was_not(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "a run"
    job = submitted(capsys, RECIPE, "--nodes=2", "--nproc=1", *WORDS, f"logger.run_dir={run_dir}")
    saved = [0]
    # Told by a signal, the job puts itself back into the queue. Requeued from outside, SLURM does, and once.
    for attempt, preempt in enumerate((["scancel", "--signal=USR1", job], ["scontrol", "requeue", job])):
        wait_until(partial(has_logged, run_dir, saved[-1] + 3), WAIT_S, lambda: told_last(run_dir))
        cluster.command(*preempt)
        wait_until((run_dir / "slurm" / f"{job}.{attempt + 1}").exists, WAIT_S, lambda: told_last(run_dir))
        found = sorted(int(path.name[-7:]) for path in (run_dir / "checkpoints").glob("iter_*"))
        assert found[:-1] == saved[1:] and saved[-1] < found[-1] < STEPS, "it was not preempted on its way"
        saved = [0, *found]
    wait_until(lambda: cluster.job(job)["JobState"] == "COMPLETED", WAIT_S, lambda: told_last(run_dir))
    assert cluster.job(job)["Restarts"] == "2" and cluster.job(job)["ExitCode"] == "0:0"
    assert (run_dir / "exit_code").read_text() == "0\n"
    told = output(run_dir)
    assert told.count("back into the queue") == 1 and told.count("steps are done and saved") >= 2, told
    assert all(f"continues from {run_dir}/checkpoints/iter_{step:07d}" in told for step in saved[1:])
    for attempt in range(3):  # a log a rank and attempt
        logs = (run_dir / "slurm" / f"{job}.{attempt}").glob("node*/*/attempt_0/0/stdout.log")
        assert len(list(logs)) == 2
    assert run_ranks(2, run_unbroken, tmp_path / "unbroken") == [0, 0]
    assert exact(run_dir) == exact(tmp_path / "unbroken")


def test_a_job_that_is_cancelled_stays_so(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ranks end with 75 all the same. They compute nothing here: the launcher never asks what they are."""
    run_dir = tmp_path / "run"
    job = submitted(capsys, RECIPE, "--nproc=2", *WORDS, f"logger.run_dir={run_dir}", "--sbatch=hold")
    script = run_dir / "slurm" / "distill.sbatch"
    (tmp_path / "rank.py").write_text(RANK)
    cluster.command("scancel", job)
    text = re.sub(r"(?m)^RECIPE=.*", f"RECIPE={tmp_path}/rank.py", script.read_text()).replace("#SBATCH --hold\n", "")
    script.write_text(re.sub(r"(?m)^OVERRIDES=.*", f"OVERRIDES=(signals {run_dir})", text))
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
