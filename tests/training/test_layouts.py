"""One seed, one run: losses and gradient norms do not depend on how the work is divided."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.tiny import VOCAB, tiny_config, train_and_read

pytestmark = pytest.mark.slow  # whole runs on several ranks

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"tp": 2}),
    "TP2 with sequence parallel": (2, {"tp": 2, "sequence_parallel": True}),
    "PP2": (2, {"pp": 2, "micro_batch_size": 4}),
    "TP2 x PP2": (4, {"tp": 2, "pp": 2, "micro_batch_size": 2}),
    "DP2": (2, {"micro_batch_size": 4}),
    "DP2 with overlapped communication": (2, {"micro_batch_size": 2, "overlap": True}),
    "DP2 x PP2 with overlapped communication": (4, {"pp": 2, "micro_batch_size": 2, "overlap": True}),
    "DP2 with a plain optimizer": (2, {"micro_batch_size": 2, "distributed_optimizer": False}),
    "2 micro-batches": (1, {"micro_batch_size": 4}),
    "4 micro-batches": (1, {"micro_batch_size": 2}),
}
LOSSES: dict[str, dict[str, Any]] = {
    "global": {"loss_balancer": "global"},
    "materialised": {"logits_form": "materialised"},
    "top-k": {"logit_kl_topk": 5},
    "global with the LM loss": {"loss_balancer": "global", "skip_lm_loss": False, "logit_kl_temperature": 2.0},
    "static with the LM loss": {
        "loss_balancer": "static",
        "skip_lm_loss": False,
        "kd_loss_scale": 0.7,
        "intermediate_loss_weight": 2.0,
    },
}
COMPARED = (
    "loss",
    "lm_loss",
    "logits_loss",
    "intermediate_loss",
    "teacher_top1_agreement",
    "teacher_topk_mass",
    "grad_norm",
)


@cache
def undivided(losses: str, folder: Path) -> list[dict[str, Any]]:
    return run_ranks(1, train_and_read, tiny_config(folder / losses, kd=LOSSES[losses]))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undivided")


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_losses_of_the_undivided_run(layout: str, losses: str, tmp_path: Path, folder: Path) -> None:
    world_size, divided = LAYOUTS[layout]
    expected = undivided(losses, folder)
    actual = run_ranks(world_size, train_and_read, tiny_config(tmp_path, kd=LOSSES[losses], **divided))[0]
    assert [r["split"] for r in actual] == ["train"] * 5 + ["validation"]
    for ours, theirs in zip(actual, expected, strict=True):
        for name in COMPARED:
            if name in theirs:  # a validation record has no gradient norm
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (ours["step"], name)


@pytest.mark.parametrize("losses", ["fused", "top-k"])
@pytest.mark.parametrize("layout", ["PP2", "TP2 with sequence parallel"])
def test_models_of_different_vocabulary_give_one_run_at_any_layout(layout: str, losses: str, tmp_path: Path) -> None:
    sizes = {"kd": {} if losses == "fused" else {"logit_kl_topk": 5}, "iters": 3, "teacher": {"vocab_size": 300}}
    expected = run_ranks(1, train_and_read, tiny_config(tmp_path / "a", **sizes))[0]
    world_size, divided = LAYOUTS[layout]
    actual = run_ranks(world_size, train_and_read, tiny_config(tmp_path / "b", **sizes, **divided))[0]
    for ours, theirs in zip(actual, expected, strict=True):
        for name in COMPARED:
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (ours["step"], name)


def test_the_runs_learn(folder: Path) -> None:
    """Equal losses would also be had by runs that do nothing."""
    records = undivided("global", folder)
    assert records[4]["logits_loss"] < 0.9 * records[0]["logits_loss"]


def test_both_forms_of_the_logit_loss_give_one_run(folder: Path) -> None:
    for fused, materialised in zip(undivided("global", folder), undivided("materialised", folder), strict=True):
        assert fused.keys() == materialised.keys()
        for name in ("logits_loss", "intermediate_loss", "grad_norm", "teacher_top1_agreement"):
            assert name not in fused or fused[name] == pytest.approx(materialised[name], rel=1e-5), (
                fused["step"],
                name,
            )


def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(folder: Path, tmp_path: Path) -> None:
    every = run_ranks(1, train_and_read, tiny_config(tmp_path, kd={"logit_kl_topk": VOCAB}))[0]
    for ours, theirs in zip(every, undivided("global", folder), strict=True):
        assert ours["logits_loss"] == pytest.approx(theirs["logits_loss"], rel=1e-4)
        assert ours["teacher_topk_mass"] == pytest.approx(1.0, abs=1e-5)
    fewer = undivided("top-k", folder)
    assert 0.05 < fewer[0]["teacher_topk_mass"] < 0.95
