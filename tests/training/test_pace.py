"""Averages over the steps since the last logged line."""

from __future__ import annotations

from megatron_kd.training.pace import MEASURED_TIMES, Pace


def test_rates_are_of_all_steps_together() -> None:
    pace = Pace().after_step(100, 80, 1.0).after_step(100, 0, 3.0)
    assert pace.record() == {"tokens_per_second": 50.0, "loss_tokens_per_second": 20.0, "seconds": 2.0}
    assert set(pace.record()) < set(MEASURED_TIMES)
