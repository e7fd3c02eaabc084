"""Bars and plain lines."""

from __future__ import annotations

import pytest

from megatron_kd.training.hooks.progress import Display

VALUES = {"loss": 1.25, "logits_loss": 0.5, "lr": 1e-3, "tokens_per_second": 1234.0}


def show(style: str) -> None:
    display = Display(style, total=10, done=4)
    display.say("it starts")
    display.step(5, VALUES, logged=True)
    display.step(6, VALUES, logged=False)
    display.evaluation(6, {"lm_loss": 2.0, "perplexity": 7.3891})
    display.close()


def test_plain_lines_tell_logged_steps_speed_losses_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    show("plain")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "it starts"
    assert lines[1].startswith("step 5/10  1234 tokens/s  loss 1.2500  logits_loss 0.5000  lr 0.001  ETA 0:00:0")
    assert lines[2:] == ["validation after 6 steps  lm_loss 2.0000  perplexity 7.3891"]


def test_without_a_terminal_auto_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    show("auto")
    assert "step 5/10" in capsys.readouterr().out


def test_off_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show("off")
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_every_step_and_passes_lines_through(capsys: pytest.CaptureFixture[str]) -> None:
    show("bar")
    out = "".join(capsys.readouterr())
    assert "6/10" in out and "1234 tokens/s" in out and "it starts" in out
