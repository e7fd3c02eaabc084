"""The plan of `make distill-pruned`, and its table of gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tools.test_demo_report import ONE_SEED, SECOND_SEED, result
from tools.demo import teacher_job
from tools.demo_report import gap_table, table
from tools.prune_demo import Plan, student_jobs


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan over a corpus that is a manifest only."""
    (tmp_path / "manifest.json").write_text("{}")
    return Plan(seeds=1, output=tmp_path / "runs", corpus=tmp_path, student_lrs=(2e-3, 4e-3))


def test_both_students_start_from_one_pruned_model_and_sweep_the_same_learning_rates(plan: Plan) -> None:
    teacher = teacher_job(plan.output, plan.corpus, 1)
    jobs = student_jobs(plan, 1, teacher)
    assert [(job.kind, job.lr) for job in jobs] == [
        ("untrained", 0.0), ("distilled", 2e-3), ("labels", 2e-3), ("distilled", 4e-3), ("labels", 4e-3),
    ]  # fmt: skip
    start = f"checkpoint.pretrained_checkpoint={teacher.run_dir.with_name('pruned')}"
    assert all(start in job.overrides for job in jobs)
    assert len({job.run_dir for job in jobs}) == len({job.fingerprint for job in jobs}) == 5


def test_another_teacher_makes_all_students_anew(plan: Plan) -> None:
    before = student_jobs(plan, 1, teacher_job(plan.output, plan.corpus, 1))
    after = student_jobs(plan, 1, teacher_job(plan.output, plan.corpus, 1, overrides=("train.train_iters=7",)))
    assert all(new.fingerprint != old.fingerprint for new, old in zip(after, before, strict=True))


def test_the_share_of_the_gap_is_that_of_each_seed() -> None:
    one = [*ONE_SEED, replace(result("untrained", 1, 0.0, 5.0), tokens=0)]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in gap_table(one).splitlines()[2:]]
    assert rows == [
        ["student, as pruned", "2.000", "0.500", "75.0 %"],
        ["student, labels alone", "0.900", "0.500", "44.4 %"],
    ]
    two = [*one, *SECOND_SEED, result("untrained", 2, 0.0, 5.2)]
    assert "2.000 ± 0.000" in gap_table(two) and "41.0 ± 4.9 %" in gap_table(two)
    row = table(one).splitlines()[3]
    assert [cell.strip() for cell in row.split("|")[1:6]] == ["student, as pruned", "-", "5.000", "50.0", "0"]
