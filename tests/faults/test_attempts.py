"""A step that meets NaN is retried once: a transient fault leaves no trace in the run, a persistent one ends it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import NumericalFault
from tests.faults.numbers import Poison, Poisoned, weights
from tests.hooks import On
from tests.ranks import run_ranks
from tests.tiny import read_metrics, tiny_config

NAN_RANK = 1


def weights_after(cfg: ConfigContainer, at_step: int, where: str, times: int) -> tuple[dict[str, Any], str, int]:
    """On a rank: run `cfg`; rank 1 meets NaN in the first `times` attempts at `at_step`.

    `where` is "student", "teacher" or "gradient". Returns this rank's weights, the error's message and the faults hit.
    """
    from megatron_kd.training.train import train

    kept, poisoned = On(), Poisoned([Poison(at_step, where, NAN_RANK, times)] if times else [])
    with contextlib.suppress(NumericalFault):
        train(cfg, [kept, poisoned])
    return weights(kept.run), poisoned.told, poisoned.hits


LAYOUTS: dict[str, dict[str, Any]] = {"DP2": {"micro_batch_size": 2}, "TP2": {"tp": 2, "micro_batch_size": 2}}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["student", "teacher", "gradient"])
def test_a_passing_fault_leaves_no_trace_but_a_record(layout: str, where: str, tmp_path: Path) -> None:
    whole = tiny_config(tmp_path / "whole", student=DROPOUT, iters=3, **LAYOUTS[layout])
    faulty = tiny_config(tmp_path / "faulty", student=DROPOUT, iters=3, **LAYOUTS[layout])
    expected = run_ranks(2, weights_after, whole, 2, where, 0)
    got = run_ranks(2, weights_after, faulty, 2, where, 1)
    assert got[NAN_RANK][2] == 1, "the fault did not hit"
    for (found, told, _), (same, _, _) in zip(got, expected, strict=True):
        assert not told
        assert all(torch.equal(found[name], same[name]) for name in same)
    losses = [
        [r["loss"].hex() for r in read_metrics(tmp_path / run) if r["split"] == "train"] for run in ("whole", "faulty")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    (record,) = map(json.loads, (tmp_path / "faulty" / "faults.jsonl").read_text().splitlines())
    assert (record["step"], record["outcome"]) == (2, "transient")
    assert where in record["what"]
    assert not (tmp_path / "whole" / "faults.jsonl").exists()


@pytest.mark.parametrize("where", ["student", "teacher", "gradient"])
def test_a_lasting_fault_ends_the_run_before_the_update(where: str, tmp_path: Path) -> None:
    before = tiny_config(tmp_path / "before", iters=1, micro_batch_size=2)
    cfg = tiny_config(tmp_path / "run", iters=3, micro_batch_size=2)
    expected = run_ranks(2, weights_after, before, 9, where, 0)
    got = run_ranks(2, weights_after, cfg, 2, where, 2)
    assert got[NAN_RANK][2] == 2, "the fault did not hit twice"
    for (found, told, _), (same, _, _) in zip(got, expected, strict=True):
        assert told.startswith("step 2 was not taken: ") and where in told and "first attempt: samples " in told
        assert all(torch.equal(found[name], same[name]) for name in same)
    (record,) = map(json.loads, (tmp_path / "run" / "faults.jsonl").read_text().splitlines())
    assert (record["step"], record["outcome"]) == (2, "persistent")
    # Rank 1's share of samples 8 .. 15: two micro-batches of two.
    assert record["sample_ids_by_rank"]["1"] == [10, 11, 14, 15]
    assert ("0" in record["sample_ids_by_rank"]) == (where == "gradient")
