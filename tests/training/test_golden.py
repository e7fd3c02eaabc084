"""The golden run is what it was, to the last bit, on the kinds of processor that it was recorded on."""

from __future__ import annotations

import warnings

import pytest

from tests.training.golden.run import NAMES, STEPS, compared, computed_elsewhere, kept


class OtherProcessor(RuntimeWarning):
    """The golden run was compared to 1e-5 only."""


def test_the_golden_run_is_what_it_was() -> None:
    run = computed_elsewhere()
    expected, exact = compared(run["key"])
    if exact:
        assert run["losses"] == expected
        return
    warnings.warn(f"nothing is recorded for {run['key']}: compared to 1e-5, not to the last bit", OtherProcessor, 2)
    for name in NAMES:
        values = [[float.fromhex(value) for value in losses[name]] for losses in (run["losses"], expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-7), name


def test_what_is_kept_is_one_run() -> None:
    """The losses of all kinds of CPU agree up to rounding, and the run has learnt something."""
    runs = kept()
    assert len({key.partition(", ")[2] for key in runs}) == len(runs) > 1
    first = next(iter(runs.values()))
    for losses in runs.values():
        assert {name: len(values) for name, values in losses.items()} == dict.fromkeys(NAMES, STEPS)
        for name in NAMES:
            values = [float.fromhex(value) for value in losses[name]]
            assert values == pytest.approx([float.fromhex(value) for value in first[name]], rel=1e-5, abs=1e-7)
    loss = [float.fromhex(value) for value in first["logits_loss"]]
    assert sum(loss[-5:]) < 0.95 * sum(loss[:5])
