"""The record of the best validation, as a value."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from megatron_kd.training.best_validation import Best, Measured, as_saved, resumed_best
from megatron_kd.training.hooks.best import write_best


def after(best: Best, *values: float, saved: tuple[int, ...] = ()) -> Best:
    """`best` after a validation of each step from 1 on, with checkpoints of some."""
    for step, value in enumerate(values, 1):
        best = best.with_validation(step, value)
        best = best.with_checkpoint(step) if step in saved else best
    return best


def test_the_first_of_the_lowest_is_best_and_those_since_are_counted() -> None:
    best = after(Best("lm_loss"), 3.0, 2.0, 2.5, 2.0)
    assert best == Best("lm_loss", last=Measured(4, 2.0), best=Measured(2, 2.0), waited=2)
    assert best.is_of(2) and not best.is_of(4)


def test_the_highest_agreement_is_best() -> None:
    assert after(Best("teacher_top1_agreement"), 0.5, 0.7, 0.6).best == Measured(2, 0.7)


def test_nan_is_never_best() -> None:
    assert after(Best("lm_loss"), float("nan")).best is None
    assert after(Best("lm_loss"), 2.0, float("nan")) == Best(
        "lm_loss", Measured(2, pytest.approx(float("nan"), nan_ok=True)), Measured(1, 2.0), None, 1
    )


def test_a_step_that_is_measured_again_counts_once() -> None:
    best = after(Best("lm_loss"), 3.0, 2.0, 2.5)
    assert best.with_validation(3, 2.5) == best


def test_the_best_of_those_with_a_checkpoint_is_known_beside_the_best() -> None:
    best = after(Best("lm_loss"), 3.0, 2.0, 2.5, 2.9, saved=(1, 3, 4))
    assert (best.best, best.saved) == (Measured(2, 2.0), Measured(3, 2.5))
    assert best.with_checkpoint(9) == best  # a step that was not validated


def test_patience_runs_out_after_as_many_validations() -> None:
    best = after(Best("lm_loss"), 3.0, 2.0, 2.5, 2.9)
    assert (best.outlasts(1), best.outlasts(2), best.outlasts(3), best.outlasts(None)) == (True, True, False, False)


def test_a_checkpoint_holds_it() -> None:
    best = after(Best("lm_loss"), 3.0, 1 / 3, 2.5, saved=(2,))
    assert resumed_best(json.loads(json.dumps(as_saved(best))), "lm_loss") == (best, "")
    assert as_saved(Best("lm_loss")) is None
    assert resumed_best(None, "lm_loss") == (Best("lm_loss"), "")


def test_another_metric_starts_again_and_says_so() -> None:
    best, note = resumed_best(asdict(after(Best("lm_loss"), 3.0)), "teacher_kl")
    assert best == Best("teacher_kl")
    assert (
        note
        == "the best validation was by lm_loss, 3 after step 1; by validation.best_metric=teacher_kl it starts again"
    )
    best, note = resumed_best({"step": 100, "loss": 2.5}, "teacher_kl")
    assert best == Best("teacher_kl") and "by loss, 2.5 after step 100; " in note


def test_a_best_of_other_samples_starts_again_and_says_so() -> None:
    saved = asdict(after(Best("lm_loss"), 3.0))
    assert resumed_best(saved, "lm_loss", same_samples=False) == (
        Best("lm_loss"),
        "the best validation, 3 after step 1, covered another number of samples; it starts again",
    )


@pytest.mark.parametrize("saved", [{}, {"metric": "lm_loss"}, {"step": 1}])
def test_what_is_no_record_is_an_error(saved: dict[str, object]) -> None:
    with pytest.raises(KeyError):
        resumed_best(saved, "lm_loss")


def test_best_json_names_the_checkpoint_once_it_is_there(tmp_path: Path) -> None:
    file, checkpoints = tmp_path / "best.json", tmp_path / "checkpoints"
    write_best(file, "lm_loss", Measured(5, 2.0), checkpoints)
    assert json.loads(file.read_text()) == {"metric": "lm_loss", "value": 2.0, "step": 5, "checkpoint": None}
    (checkpoints / "iter_0000005").mkdir(parents=True)
    write_best(file, "lm_loss", Measured(5, 2.0), checkpoints)
    assert json.loads(file.read_text())["checkpoint"] == str(checkpoints / "iter_0000005")
    write_best(file, "lm_loss", None, checkpoints)
    assert not file.exists()
