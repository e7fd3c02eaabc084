"""The parts of a distillation model: a student that learns, a teacher that stays unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from tests.hooks import On
from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read


def fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """A digest of every parameter, with its dtype."""

    def digest(tensor: torch.Tensor) -> str:
        content = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{tensor.dtype} {hashlib.sha256(content).hexdigest()}"

    return {name: digest(tensor) for name, tensor in model.named_parameters()}


def train_and_watch_the_teacher(cfg: ConfigContainer) -> dict[str, Any]:
    """On a rank: a whole run, with the teacher's and the student's fingerprints before and after."""
    from megatron_kd.training.train import train

    seen: dict[str, Any] = {}

    def look(run: Any) -> None:
        seen.update(run=run, teacher=fingerprint(run.teacher.model), student=fingerprint(student_only(run)))

    train(cfg, [On(before_run=look)])
    run = seen["run"]
    optimised = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    teacher = list(run.teacher.model.parameters())
    return {
        "before": seen["teacher"],
        "after": fingerprint(run.teacher.model),
        "student_changed": seen["student"] != fingerprint(student_only(run)),
        "teacher_grads": sum(p.grad is not None or hasattr(p, "main_grad") for p in teacher),
        "teacher_needs_grad": sum(p.requires_grad for p in teacher),
        "teacher_in_optimizer": sum(id(p) in optimised for p in teacher),
        "teacher_in_ddp": sum(p in run.chunks[0].param_to_bucket_group for p in teacher),
        "teacher_training": run.teacher.model.training and run.chunks[0].training is False,
        "student_dtypes": {str(p.dtype) for p in run.students[0].decoder.parameters()},
    }


def student_only(run: Any) -> torch.nn.Module:
    return torch.nn.ModuleList([run.students[0].decoder])


@pytest.mark.parametrize("form", ["fused", "materialised"])
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(2, {"micro_batch_size": 4}), (2, {"tp": 2, "sequence_parallel": True}), (1, {})],
)
def test_the_teacher_is_bitwise_unchanged_and_keeps_its_precision(
    world_size: int, layout: dict[str, Any], form: str, tmp_path: Path
) -> None:
    cfg = tiny_config(tmp_path, precision="bf16", kd={"skip_lm_loss": False, "logits_form": form}, **layout)
    cfg.model.teacher_dtype = "float32"
    for seen in run_ranks(world_size, train_and_watch_the_teacher, cfg):
        assert seen["before"] == seen["after"]
        assert all(value.startswith("torch.float32") for value in seen["after"].values())
        assert seen["student_changed"]
        assert seen["student_dtypes"] == {"torch.bfloat16"}
        nothing = ("teacher_grads", "teacher_needs_grad", "teacher_in_optimizer", "teacher_in_ddp")
        assert {name: seen[name] for name in nothing} == dict.fromkeys(nothing, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [["decoder.layers.1.pre_mlp_layernorm", "decoder.layers.3.pre_mlp_layernorm"],
     ["decoder.layers.1.mlp", "decoder.layers.2.mlp"]],
)  # fmt: skip
def test_layer_names_count_over_the_whole_model(pair: list[str], tmp_path: Path) -> None:
    kd = {"intermediate_layer_pairs": [pair, ["decoder.final_layernorm", "decoder.final_layernorm"]]}
    whole = run_ranks(1, train_and_read, tiny_config(tmp_path / "a", kd=kd, micro_batch_size=4))[0]
    staged = run_ranks(2, train_and_read, tiny_config(tmp_path / "b", kd=kd, micro_batch_size=4, pp=2))[0]
    for ours, theirs in zip(staged, whole, strict=True):
        assert ours["intermediate_loss"] == pytest.approx(theirs["intermediate_loss"], rel=1e-5)
    default = run_ranks(1, train_and_read, tiny_config(tmp_path / "c", micro_batch_size=4))[0]
    assert whole[0]["intermediate_loss"] != pytest.approx(default[0]["intermediate_loss"], rel=1e-3)
