"""When the demo reuses, resumes or repeats its runs, and how it reports one that fails. No training happens here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.demo_runs import Job, RunFailed, finish

RECORDS = [
    {"step": 1, "split": "train", "tokens": 2048},
    {"step": 2, "split": "train", "tokens": 2048},
    {"step": 2, "split": "validation", "lm_loss": 4.0, "perplexity": 54.6},
]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        kind="labels",
        seed=1,
        lr=4e-3,
        recipe="recipes/tiny/pretrain_tiny_student.py",
        overrides=("optimizer.lr=4e-3",),
        run_dir=tmp_path / "run",
        inputs="a corpus",
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were really run, by a process that writes the metrics and nothing else."""
    started: list[Job] = []

    def command(job: Job) -> list[str]:
        started.append(job)
        text = "".join(json.dumps(record) + "\n" for record in RECORDS)
        write = f"import pathlib; pathlib.Path({str(job.run_dir)!r}, 'metrics.jsonl').write_text({text!r})"
        return [sys.executable, "-c", f"{write}; print('step 2/2')"]

    monkeypatch.setattr(Job, "command", property(command))
    return started


def quiet(_: str) -> None:
    """Print nothing."""


def times_run(runs: list[Job]) -> int:
    """Each run asks for its command twice: to show it and to start it."""
    assert len(runs) % 2 == 0
    return len(runs) // 2


def test_a_finished_run_is_reused(job: Job, runs: list[Job]) -> None:
    first, second = finish(job, quiet), finish(job, quiet)
    assert times_run(runs) == 1
    assert first == second
    assert (first.tokens, first.lm_loss, first.curve) == (4096, 4.0, [(2, 4.0)])


@pytest.mark.parametrize("change", [{"overrides": ("optimizer.lr=5e-3",)}, {"inputs": "another corpus"}])
def test_a_run_that_would_come_out_otherwise_is_made_anew(job: Job, runs: list[Job], change: dict[str, object]) -> None:
    finish(job, quiet)
    (job.run_dir / "leftover").touch()
    finish(replace(job, **change), quiet)  # type: ignore[arg-type]
    assert times_run(runs) == 2
    assert not (job.run_dir / "leftover").exists()


def test_an_interrupted_run_is_resumed_in_its_folder_and_its_time_counts(job: Job, runs: list[Job]) -> None:
    finish(job, quiet)
    state_file = job.run_dir / "demo.json"
    state = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({**state, "finished": False, "wall_s": 1000.0}))
    (job.run_dir / "checkpoint").touch()
    assert finish(job, quiet).wall_s > 1000
    assert times_run(runs) == 2
    assert (job.run_dir / "checkpoint").exists()


def test_a_failure_names_the_log_and_has_the_exit_code_of_the_ranks(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write = f"import pathlib; pathlib.Path({str(job.run_dir)!r}, 'exit_code').write_text('17')"
    script = f"{write}; import sys; sys.exit('the loss is nan')"
    monkeypatch.setattr(Job, "command", property(lambda job: [sys.executable, "-c", script]))
    with pytest.raises(RunFailed, match="the loss is nan") as caught:
        finish(job, quiet)
    assert caught.value.exit_code == 17
    assert str(job.run_dir / "log.txt") in str(caught.value)
    assert not json.loads((job.run_dir / "demo.json").read_text())["finished"]


def test_what_runs_is_torchrun_on_the_recipe(job: Job) -> None:
    assert job.command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert job.command[5:] == [job.recipe, "optimizer.lr=4e-3", f"logger.run_dir={job.run_dir}"]
