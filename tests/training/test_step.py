"""A step with NaN or Inf ends the run before the update, on all ranks, and leaves checkpoints alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from tests.faults.batches import read_through
from tests.hooks import On
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read


def poison_each(cases: list[tuple[ConfigContainer, str]], rank: int) -> list[dict[str, Any]]:
    """On a rank: `poison` for one configuration and model after the other."""
    return [poison(cfg, model, 1, rank) for cfg, model in cases]


def poison(cfg: ConfigContainer, model: str, step: int, rank: int) -> dict[str, Any]:
    """On a rank: run `cfg`, with a NaN put into a weight that `rank` has of `model` before the step after `step`."""
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training.train import train

    before: list[torch.Tensor] = []

    def poisoned(run: Any) -> None:
        if run.step == step:
            layer = (run.students[0] if model == "student" else run.teacher.model).decoder.layers[0]
            if run.layout.rank == rank:
                with torch.no_grad():
                    layer.mlp.linear_fc2.weight[0, 0] = float("nan")
            before.append(run.students[0].decoder.layers[0].input_layernorm.weight.clone())

    hook = On(before_step=poisoned)
    try:
        train(cfg, [hook])
    except NumericalFault as fault:
        unchanged = torch.equal(before[0], hook.run.students[0].decoder.layers[0].input_layernorm.weight)
        return {"fault": str(fault), "unchanged": unchanged, "step": hook.run.step}
    raise AssertionError("the run did not end")


LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tp": 2},
    "PP2": {"pp": 2, "micro_batch_size": 4},
    "DP2": {"micro_batch_size": 4},
    "DP2 with overlapped communication": {"micro_batch_size": 2, "overlap": True},
}
FORMS: dict[str, dict[str, Any]] = {
    "fused": {"logits_form": "fused"},
    "materialised with the LM loss": {"logits_form": "materialised", "skip_lm_loss": False},
    "top-k": {"logit_kl_topk": 5},
    "modelopt": {"loss_balancer": "modelopt"},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_on_one_rank_ends_all_at_one_step_before_the_update_and_says_whose_it_is(
    layout: str, tmp_path: Path
) -> None:
    """Each rank raises by itself: one that only saw others go would raise a connection's error, or wait."""
    saved = {"save": True, "save_interval": 1}
    cases = [
        (tiny_config(tmp_path / f"{model} {form}", kd=FORMS[form], **LAYOUTS[layout], **saved), model)
        for form in (FORMS if layout == "TP2" else ("fused", "materialised with the LM loss"))
        for model in ("student", "teacher")
    ]
    poisoned = 0 if layout == "PP2" else 1
    for rank in run_ranks(2, poison_each, cases, poisoned):
        for seen, (cfg, model) in zip(rank, cases, strict=True):
            assert f"step 2 was not taken: the {model} logits are not finite" in seen["fault"], cfg.logger.run_dir
            assert seen["unchanged"] and seen["step"] == 1, seen
            assert [path.name for path in Path(cfg.logger.run_dir, "checkpoints").iterdir()] == ["iter_0000001"]


def test_a_nan_in_a_model_that_learns_from_labels(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, distilled=False, micro_batch_size=4)
    for seen in run_ranks(2, poison, cfg, "student", 1, 1):
        assert "step 2 was not taken: the student logits are not finite" in seen["fault"]


def poison_before_evaluation(cfg: ConfigContainer) -> str:
    """On a rank: run `cfg`, with a NaN put into the teacher of rank 1 after the last step; the error's message."""
    from megatron_kd.errors import NumericalFault
    from megatron_kd.training.train import train

    def poisoned(run: Any) -> None:
        if run.layout.rank == 1 and run.step == run.derived.train_iters:
            run.teacher.model.output_layer.weight.detach()[0, 0] = float("inf")

    try:
        train(cfg, [On(after_step=poisoned)])
    except NumericalFault as fault:
        return str(fault)
    raise AssertionError("the run did not end")


def test_an_evaluation_that_meets_an_infinite_logit_ends_all_ranks(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=2, micro_batch_size=4)
    for fault in run_ranks(2, poison_before_evaluation, cfg):
        assert "evaluation after step 2: the teacher logits are not finite" in fault


def mislabel(cfg: ConfigContainer) -> str:
    """On a rank: run `cfg`, with an invalid label on rank 1; the error's message."""
    import torch.distributed as dist

    from megatron_kd.errors import InputError
    from megatron_kd.training.train import train

    def mislabelled(step: int, batch: Any) -> Any:
        if dist.get_rank() == 1:
            batch.labels[0, 3] = 255  # a padded slot
        return batch

    with read_through(mislabelled):
        try:
            train(cfg)
        except InputError as error:
            return str(error)
    raise AssertionError("the run did not end")


@pytest.mark.parametrize("form", ["fused", "materialised"])
def test_a_label_that_is_no_id_ends_all_ranks(form: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, micro_batch_size=4, kd={"skip_lm_loss": False, "logits_form": form})
    for error in run_ranks(2, mislabel, cfg):
        assert "step 1 was not taken: a label is outside the student's vocabulary" in error


@pytest.mark.slow
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
