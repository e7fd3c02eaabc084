"""Lines that fit, and never lose the learning rate and the time left."""

from __future__ import annotations

import pytest

from megatron_kd.training.hooks.step_line import amount, duration, evaluation_lines, number, step_line

VALUES = {
    "loss": 1e-3, "logits_loss": 0.1539, "intermediate_loss": 0.1101, "lm_loss": 3.9271, "lr": 1.25e-5,
    "tokens_per_second": 1.2e6, "tokens": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 66, 72, 80, 100, 132, 200])
@pytest.mark.parametrize(("step", "total"), [(5, 250), (123_456, 1_000_000), (99_999, 100_000)])
@pytest.mark.parametrize("loss", [1e-9, 1e-3, 11.5, 123.456, 98765.4])
def test_a_step_fits_with_its_learning_rate_and_the_time_left(width: int, step: int, total: int, loss: float) -> None:
    for seconds in (0.0, 359_999.0, 9e6):
        line = step_line(step, total, {**VALUES, "loss": loss}, seconds, width)
        assert len(line) <= width
        assert line.startswith(f"step {step}/{total}  ")
        assert line.endswith(f"  loss {number(loss)}  lr 1.25e-05  ETA {duration(seconds)}") or "tokens/s" in line
        assert f"  lr 1.25e-05  ETA {duration(seconds)}" in line


def test_what_fits_is_shown() -> None:
    assert step_line(123_456, 1_000_000, VALUES, 3600, 80) == (
        "step 123456/1000000  1.2M tokens/s  loss 0.0010  lr 1.25e-05  ETA 1:00:00"
    )
    assert step_line(5, 250, VALUES, 60, 200) == (
        "step 5/250  1.2M tokens/s  loss 0.0010  lm_loss 3.9271  logits_loss 0.1539  intermediate_loss 0.1101  "
        "lr 1.25e-05  ETA 0:01:00"
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_evaluation_is_shown_whole(width: int) -> None:
    values = {"lm_loss": 3.9, "teacher_kl": 0.1539, "teacher_top1_agreement": 0.7, "perplexity": 50.76, "tokens": 8.0}
    lines = evaluation_lines(100, values, width)
    assert all(len(line) <= width for line in lines)
    assert "  ".join(line.strip() for line in lines) == (
        "validation after 100 steps  lm_loss 3.9000  teacher_kl 0.1539  teacher_top1_agreement 0.7000  "
        "perplexity 50.7600"
    )


def test_one_step_is_singular() -> None:
    assert evaluation_lines(1, {"loss": 2.0, "tokens": 8.0}, 80)[0].startswith("validation after 1 step  ")


def test_an_evaluation_of_nothing_is_a_warning() -> None:
    (line,) = evaluation_lines(100, {"tokens": 0.0}, 80)
    assert line.startswith("warning: validation after 100 steps measures nothing: no token")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.3, "0"), (640, "640"), (9994, "9994"), (25_310, "25.3k"), (999_499, "999k"), (999_600, "1M"), (1.2e6, "1.2M"),
     (2.5e9, "2.5G")],
)  # fmt: skip
def test_amounts_have_units(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0000"), (1e-9, "1.0e-09"), (1e-3, "0.0010"), (11.5, "11.5000"), (123.456, "123.46"), (98765.4, "9.9e+04")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:00:05"), (359_999, "99:59:59"), (360_000, "4d 04h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
