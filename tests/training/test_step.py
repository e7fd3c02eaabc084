"""A step that meets a number that is none stops the run, and leaves weights on disk alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read


def poison(cfg: ConfigContainer, model: str, step: int) -> dict[str, Any]:
    """On a rank: run `cfg`, with a NaN put into a weight of `model` before the step after `step`."""
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training import train as loop

    original = loop.train_step
    seen: dict[str, Any] = {}

    def poisoned(run: Any, batches: Any) -> Any:
        seen["run"] = run
        if run.step == step:
            layer = (run.students[0] if model == "student" else run.teacher.model).decoder.layers[0]
            with torch.no_grad():
                layer.mlp.linear_fc2.weight[0, 0] = float("nan")
            seen["before"] = run.students[0].decoder.final_layernorm.weight.clone()
        return original(run, batches)

    loop.train_step = poisoned
    try:
        loop.train(cfg)
    except NumericalFault as fault:
        unchanged = torch.equal(seen["before"], seen["run"].students[0].decoder.final_layernorm.weight)
        return {"fault": str(fault), "unchanged": unchanged, "step": seen["run"].step}
    finally:
        loop.train_step = original
    raise AssertionError("the run went on")


@pytest.mark.parametrize("form", ["fused", "materialised"])
@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_nan_in_either_model_ends_the_run_before_the_update(model: str, form: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=4, save=True, save_interval=1, tp=2, kd={"logits_form": form})
    for seen in run_ranks(2, poison, cfg, model, 2):
        assert seen["unchanged"] and seen["step"] == 2, seen
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["iter_0000001", "iter_0000002"]


def test_evaluation_changes_nothing(tmp_path: Path) -> None:
    """The same run with and without evaluations in between, and evaluations of the same weights agree."""
    often = tiny_config(tmp_path / "a", iters=4)
    often.validation.eval_interval = 1
    records = run_ranks(1, train_and_read, often)[0]
    seldom = run_ranks(1, train_and_read, tiny_config(tmp_path / "b", iters=4))[0]
    trained = [r["loss"] for r in records if r["split"] == "train"]
    assert trained == [r["loss"] for r in seldom if r["split"] == "train"]
    assert records[-1]["lm_loss"] == seldom[-1]["lm_loss"]
    assert [r["step"] for r in records if r["split"] == "validation"] == [1, 2, 3, 4]
