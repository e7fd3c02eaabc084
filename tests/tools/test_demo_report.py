"""The demo's table and picture, from synthetic results."""

from __future__ import annotations

import json
from pathlib import Path

from tools.demo_report import best_of_each, sweep_table, table, write_report
from tools.demo_runs import Result


def result(kind: str, seed: int, lr: float, loss: float) -> Result:
    return Result(
        kind=kind, seed=seed, lr=lr, lm_loss=loss, perplexity=10 * loss, tokens=819_200, wall_s=61.4,
        curve=[(100, loss + 1), (200, loss)],
    )  # fmt: skip


ONE_SEED = [
    result("teacher", 1, 2e-3, 3.0),
    result("distilled", 1, 2e-3, 3.6),
    result("distilled", 1, 4e-3, 3.5),
    result("labels", 1, 2e-3, 3.9),
    result("labels", 1, 4e-3, 4.1),
]
SECOND_SEED = [
    result("teacher", 2, 2e-3, 3.2),
    result("distilled", 2, 2e-3, 3.7),
    result("distilled", 2, 4e-3, 3.8),
    result("labels", 2, 2e-3, 4.0),
    result("labels", 2, 4e-3, 4.2),
]


def test_the_table_has_the_best_learning_rate_of_each_kind() -> None:
    assert table(ONE_SEED).splitlines() == [
        "| model                 | learning rate | validation LM loss | perplexity | training tokens | wall time |",
        "| --------------------- | ------------: | -----------------: | ---------: | --------------: | --------: |",
        "| teacher               |         0.002 |              3.000 |       30.0 |         819,200 |      61 s |",
        "| student, distilled    |         0.004 |              3.500 |       35.0 |         819,200 |      61 s |",
        "| student, labels alone |         0.002 |              3.900 |       39.0 |         819,200 |      61 s |",
    ]


def test_over_seeds_it_has_means_and_standard_deviations() -> None:
    rows = table([*ONE_SEED, *SECOND_SEED]).splitlines()
    assert "3.100 ± 0.141" in rows[2]
    assert "0.004, 0.002" in rows[3] and "3.600 ± 0.141" in rows[3]
    assert "39.5 ± 0.7" in rows[4]


def test_the_best_is_chosen_for_each_seed() -> None:
    assert [run.lr for run in best_of_each([*ONE_SEED, *SECOND_SEED])["distilled"]] == [4e-3, 2e-3]


def test_the_sweep_has_every_run() -> None:
    rows = sweep_table([*ONE_SEED, *SECOND_SEED]).splitlines()
    assert len(rows) == 2 + 5
    assert [cell.strip() for cell in rows[-1].split("|")[1:-1]] == ["student, labels alone", "0.004", "4.100", "4.200"]


def test_the_report_is_three_files(tmp_path: Path) -> None:
    files = write_report(tmp_path, ONE_SEED, "make distill")
    assert [path.name for path in files] == ["results.md", "results.json", "curves.png"]
    assert table(ONE_SEED) in files[0].read_text(encoding="utf-8")
    assert len(json.loads(files[1].read_text(encoding="utf-8"))["runs"]) == 5
    assert files[2].read_bytes().startswith(b"\x89PNG")
