"""The parts of `whole_step` that need no second process. `tests/test_readme.py` runs the benchmark itself."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from megatron_kd.losses.keywords import vocab_parallel_divergence
from tools.bench import whole_step
from tools.bench.whole_step import DEFAULTS, DISTILL, PEER, STUDENT, TEACHER, Measured, Memory, Sizes, report

pytestmark = pytest.mark.slow  # whole runs on several ranks


def test_the_peers_loss_is_the_one_we_compute() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 5, 11, dtype=torch.float64)
    labels = torch.zeros(2, 5, dtype=torch.long)
    labels[0, :3] = -100
    ours = vocab_parallel_divergence(student, teacher, kind="jsd", beta=0.0)
    torch.testing.assert_close(whole_step.gkd_loss(student, teacher, labels), ours[labels != -100].mean())


@pytest.mark.parametrize(("text", "heads", "ffn"), [("8x256", 4, 704), ("1x32", 1, 88)])
def test_both_implementations_get_the_same_architecture(text: str, heads: int, ffn: int) -> None:
    shape = whole_step.Architecture.parse(text)
    assert (f"{shape.layers}x{shape.hidden}", shape.heads, shape.ffn) == (text, heads, ffn)


def test_sides_differ_in_teacher_and_layer_pairs_only(tmp_path) -> None:
    sizes = Sizes(teacher="2x64", student="1x32", vocab=128, batch=2, seq=8)
    ours, defaults, student, teacher = (
        whole_step.config(sizes, side, str(tmp_path)).model for side in (DISTILL, DEFAULTS, STUDENT, TEACHER)
    )
    assert ours.teacher == defaults.teacher == teacher
    assert (ours.hidden_size, student.hidden_size, teacher.hidden_size) == (32, 32, 64)
    assert not ours.kd_config.intermediate_layer_pairs
    assert defaults.kd_config.intermediate_layer_pairs


def test_a_ratio_is_taken_within_its_round() -> None:
    # The machine is ten times slower in the second round: the ratio is not.
    assert whole_step.ratios([3.0, 30.0], [1.0, 10.0], [1.0, 10.0]) == [1.5, 1.5]


def test_the_table_has_each_goal_beside_its_figure() -> None:
    measured = {
        DISTILL: Measured([2.0, 4.0, 2.0], Memory(500.0, 1000.0)),
        DEFAULTS: Measured([2.2, 4.4, 2.2], Memory(500.0, 1000.0)),
        STUDENT: Measured([1.0, 2.0, 1.0], Memory(500.0, 1200.0)),
        TEACHER: Measured([1.0, 2.0, 1.0], Memory(500.0, 900.0)),
        PEER: Measured([4.0, 4.0, 5.0], Memory(500.0, 3000.0)),
    }
    lines = report(measured, Sizes(batch=1, seq=100)).splitlines()
    assert "| distillation | 2.000 (2.000-4.000) | 50 | 1,000 | 500 |" in lines
    assert "| teacher's logits | 1.000 (1.000-2.000) | - | 900 | 400 |" in lines
    parts = "time / (teacher's logits + student, LM loss)"
    assert f"| distillation: {parts} | 1.00 (1.00-1.00) | <= 1.10, aim 1.05 | | |" in lines
    assert f"| defaults: {parts} | 1.10 (1.10-1.10) | - | | |" in lines
    assert "| distillation / peer: tokens/s | 2.00 (1.00-2.50) | >= 1.4, aim 2 | | |" in lines
    assert "| distillation / peer: peak RSS | 0.33 | <= 0.33 | | |" in lines
    assert "| distillation / peer: RSS beyond imports | 0.20 | - | | |" in lines


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_keeps_what_was_freed() -> None:
    before = whole_step.peak_rss_mb()
    block = bytearray(os.urandom(1 << 16) * 1024)  # 64 MiB, all of it touched
    touched = whole_step.peak_rss_mb()
    del block
    assert whole_step.peak_rss_mb() >= touched >= before


@pytest.mark.parametrize("argv", [["--rounds", "0"], ["--sides", "student"]])
def test_a_run_that_measures_nothing_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        whole_step.main(argv)
    assert "--rounds must be positive, and --sides must have distillation" in capsys.readouterr().err
