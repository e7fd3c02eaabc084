"""Which metrics a run can be compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.measured import best_metric, comparable, is_better, unmeasured, weights_move
from tests.tiny import tiny_config

ALL = ["teacher_kl", "lm_loss", "perplexity", "logits_loss", "intermediate_loss", "teacher_top1_agreement",
       "teacher_top5_agreement"]  # fmt: skip


def test_the_metric_of_the_best_follows_from_the_run() -> None:
    distilled, on_labels = tiny_config(Path()), tiny_config(Path(), distilled=False)
    assert (best_metric(distilled), best_metric(on_labels)) == ("teacher_kl", "lm_loss")
    distilled.validation.best_metric = "perplexity"
    assert best_metric(distilled) == "perplexity"


def test_only_what_a_run_measures_can_be_compared() -> None:
    assert comparable(tiny_config(Path())) == ALL
    assert comparable(tiny_config(Path(), distilled=False)) == ["lm_loss", "perplexity"]
    without_pairs = tiny_config(Path(), kd={"intermediate_layer_pairs": []})
    assert comparable(without_pairs) == [name for name in ALL if name != "intermediate_loss"]


@pytest.mark.parametrize(
    ("kd", "move"),
    [
        ({}, True),
        ({"intermediate_layer_pairs": []}, False),  # the logit loss alone
        ({"intermediate_layer_pairs": [], "skip_lm_loss": False}, True),
        ({"skip_lm_loss": False, "loss_balancer": "static"}, False),
        ({"skip_lm_loss": False, "loss_balancer": "modelopt"}, True),
    ],
)
def test_a_total_whose_weights_move_is_left_out_of_validations(kd: dict[str, Any], move: bool) -> None:
    losses = tiny_config(Path(), kd=kd).models.kd
    assert losses is not None and weights_move(losses) == move
    assert ("loss" in unmeasured(losses, training=False)) == move
    assert "loss" not in unmeasured(losses, training=True)


def test_agreement_is_better_higher_and_losses_lower() -> None:
    assert is_better("teacher_top5_agreement", 0.6, 0.5) and not is_better("teacher_top5_agreement", 0.5, 0.5)
    assert is_better("teacher_kl", 0.5, 0.6) and not is_better("teacher_kl", 0.6, 0.6)
