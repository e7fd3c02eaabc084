"""`make distill SMOKE=1`: everything for real, with few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kd.resolve.configuration import config_from_file
from tools import demo
from tools.demo import Plan, jobs_of_seed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_smoke_run_prints_one_table_and_writes_it_and_a_picture(tmp_path: Path) -> None:
    words = ["--smoke", "--output", str(tmp_path / "runs"), "--corpus", str(tmp_path / "corpus")]
    first = run_demo(words)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["teacher", "student, distilled", "student, labels alone"]
    assert "40,960" in rows[2]  # 20 steps of 16 sequences of 128 tokens
    runs = json.loads((tmp_path / "runs/results.json").read_text())["runs"]
    assert [run["kind"] for run in runs] == ["teacher", "distilled", "labels"]
    assert all(3 < run["lm_loss"] < 8 and run["wall_s"] > 1 for run in runs)
    assert (tmp_path / "runs/results.md").read_text().count("|") > 40
    assert (tmp_path / "runs/curves.png").stat().st_size > 10_000
    student_runs_differ_only_in_the_teacher(tmp_path / "runs/seed1")

    second = run_demo(words)  # all there: nothing is trained again
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished earlier") == 3
    assert [line for line in second.stdout.splitlines() if line.startswith("|")] == rows


def student_runs_differ_only_in_the_teacher(folder: Path) -> None:
    """The comparison is fair: both students have one configuration, except for the teacher and its losses."""
    distilled, labels = (config_from_file(next(folder.glob(f"{kind}-lr*")) / "run_config.yaml") for kind in KINDS)
    for section in ("train", "optimizer", "scheduler", "rng", "dataset", "tokenizer", "validation", "ddp"):
        assert getattr(distilled, section) == getattr(labels, section)
    for name, value in vars(labels.model).items():
        assert getattr(distilled.model, name) == value, name


KINDS = ("distilled", "labels")


def run_demo(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "tools.demo", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan over a corpus that is a manifest only."""
    (tmp_path / "manifest.json").write_text("{}")
    return Plan(seeds=2, output=tmp_path / "runs", corpus=tmp_path, teacher_lr=2e-3, student_lrs=(2e-3, 4e-3))


def test_both_students_sweep_the_same_learning_rates_at_every_seed(plan: Plan) -> None:
    for seed in (1, 2):
        jobs = jobs_of_seed(plan, seed)
        assert [(job.kind, job.lr) for job in jobs[1:]] == [
            ("distilled", 2e-3), ("labels", 2e-3), ("distilled", 4e-3), ("labels", 4e-3),
        ]  # fmt: skip
        assert all(f"rng.seed={seed}" in job.overrides for job in jobs)


def test_another_teacher_makes_another_student_and_another_corpus_makes_all_anew(plan: Plan) -> None:
    before = [job.fingerprint for job in jobs_of_seed(plan, 1)]
    assert len(set(before)) == len(before)
    assert [job.fingerprint for job in jobs_of_seed(plan, 1)] == before
    longer = Plan(**{**vars(plan), "teacher_overrides": ("train.train_iters=7",)})
    changed = [new != old for new, old in zip([j.fingerprint for j in jobs_of_seed(longer, 1)], before, strict=True)]
    assert changed == [True, True, False, True, False]  # the teacher and the distilled students
    (plan.corpus / "manifest.json").write_text('{"documents": 1}')
    assert not set(before) & {job.fingerprint for job in jobs_of_seed(plan, 1)}


def test_a_failed_corpus_ends_the_demo_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert demo.main(["--smoke", "--corpus", str(tmp_path / "file"), "--output", str(tmp_path / "runs")]) == 2
    assert "the corpus could not be made" in capsys.readouterr().err
