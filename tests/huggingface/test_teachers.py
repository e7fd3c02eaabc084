"""A teacher out of a Hugging Face folder is the same wherever it lives: the student's own folder teaches it nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.sections import TokenizerConfig, ValidationConfig
from tests.huggingface.families import SEQUENCE, save
from tests.ranks import run_ranks
from tests.tiny import read_metrics, tiny_config

TIED, UNTIED = "llama3, tied, scaled rotary frequencies", "qwen3, q/k norm"

# Layout of the student and of the teacher.
PLACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "colocated": ({"tensor_model_parallel_size": 2}, {"tensor_model_parallel_size": 2}),
    "colocated, PP2": ({"pipeline_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}),
    "balanced": ({}, {"pipeline_model_parallel_size": 2}),
    "gpu0": ({"tensor_model_parallel_size": 2}, {}),
    "cpu": ({"pipeline_model_parallel_size": 2}, {}),
}


def own_teacher(folder: Path, run_dir: Path, place: str, quantization: Any = None) -> ConfigContainer:
    """One step of a student that is its own teacher."""
    student, teacher = PLACES[place]
    model = GPTDistillationProvider.from_hf(
        folder,
        teacher=folder,
        kd_config=ModelOptDistillConfig(intermediate_layer_pairs=[]),
        seq_length=SEQUENCE,
        teacher_device_strategy=place.partition(",")[0],
        teacher_quantization=quantization,
    )
    model = replace(model, **student, teacher=replace(model.teacher, **teacher))
    cfg = tiny_config(run_dir, micro_batch_size=4, iters=1)
    return replace(cfg, model=model, tokenizer=TokenizerConfig(), validation=ValidationConfig(eval_iters=0))


def first_losses(configs: list[ConfigContainer]) -> list[float]:
    """On a rank: the logit loss of each run's first step, which is that of the initial weights."""
    from megatron_kd.training.train import train

    for cfg in configs:
        train(cfg)
    torch.distributed.barrier()  # rank 0 writes them
    return [read_metrics(Path(cfg.logger.run_dir))[0]["logits_loss"] for cfg in configs]


@pytest.mark.slow  # whole runs on several ranks
@pytest.mark.parametrize("name", [TIED, UNTIED])
def test_a_student_agrees_with_its_own_folder_under_every_strategy(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model", num_hidden_layers=2)
    configs = [own_teacher(folder, tmp_path / str(index), place) for index, place in enumerate(PLACES)]
    small = [own_teacher(folder, tmp_path / f"int8-{place}", place, "int8") for place in ("colocated", "balanced")]
    losses = run_ranks(2, first_losses, configs + small, timeout=300)[0]
    assert len(losses) == 7 and all(abs(loss) < 1e-7 for loss in losses[:5]), losses
    assert 1e-5 < losses[5] < 1e-2 and losses[6] == pytest.approx(losses[5], rel=1e-4)
