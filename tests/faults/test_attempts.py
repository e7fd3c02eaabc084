"""A step with a number that is none is tried once more: a passing fault leaves no trace in the run, others end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from tests.ranks import run_ranks
from tests.tiny import read_metrics, tiny_config

NAN_RANK = 1


def weights_after(cfg: ConfigContainer, at_step: int, where: str, times: int) -> tuple[dict[str, Any], str, int]:
    """On a rank: run `cfg`; rank 1 meets `times` NaNs from the forward of `at_step` on.

    `where` is "student", "teacher" or "gradient". Returns this rank's weights, the error's message and the faults hit.
    """
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training import attempts, train

    seen: dict[str, Any] = {}
    take_step, hits = attempts.take_step, 0

    def poisoned(run: Any, batches: Any) -> Any:
        nonlocal hits
        seen["run"] = run
        hit = run.step + 1 == at_step and run.layout.rank == NAN_RANK and hits < times
        hits += hit
        handle = _poison(run, where) if hit else None
        try:
            return take_step(run, batches)
        finally:
            if handle is not None:
                handle.remove()

    attempts.take_step = poisoned
    told = ""
    try:
        train.train(cfg)
    except NumericalFault as fault:
        told = str(fault)
    finally:
        attempts.take_step = take_step
    state = seen["run"].students[0].state_dict()
    return {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}, told, hits


def _poison(run: Any, where: str) -> Any:
    """A hook that puts a NaN into what the last layer puts out, or into the gradient of its weight."""
    model = run.students[0] if where != "teacher" else run.teacher.model
    if where == "gradient":
        weight = model.decoder.layers[-1].mlp.linear_fc2.weight
        return weight.register_hook(
            lambda grad: grad.masked_fill(torch.ones_like(grad, dtype=torch.bool), float("nan"))
        )

    def nan(module: Any, inputs: Any, output: Any) -> Any:
        return output.masked_fill(torch.ones_like(output, dtype=torch.bool), float("nan"))

    return model.decoder.final_layernorm.register_forward_hook(nan)


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
    for (weights, told, _), (same, _, _) in zip(got, expected, strict=True):
        assert not told
        assert all(torch.equal(weights[name], same[name]) for name in same)
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
    for (weights, told, _), (same, _, _) in zip(got, expected, strict=True):
        assert told.startswith("step 2 was not taken: ") and where in told and "first attempt: samples " in told
        assert all(torch.equal(weights[name], same[name]) for name in same)
    (record,) = map(json.loads, (tmp_path / "run" / "faults.jsonl").read_text().splitlines())
    assert (record["step"], record["outcome"]) == (2, "persistent")
    # Rank 1's share of samples 8 .. 15: two micro-batches of two.
    assert record["sample_ids_by_rank"]["1"] == [10, 11, 14, 15]
    assert ("0" in record["sample_ids_by_rank"]) == (where == "gradient")
