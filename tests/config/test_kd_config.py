"""The settings of the distillation losses, alone and from a file of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.errors import ConfigError
from tests.config.base import DOCUMENTED_YAML


def test_the_documented_example(tmp_path: Path) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text(DOCUMENTED_YAML)
    assert ModelOptDistillConfig.from_yaml(str(file)) == ModelOptDistillConfig(logit_kl_temperature=2.0)


def test_settings_of_the_losses_with_all_their_errors(tmp_path: Path) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text("skip_lm_los: true\nkd_loss_scale: -1\nlogits_loss_weight: x\ntrain: {train_iters: 1}\n")
    with pytest.raises(ConfigError) as caught:
        ModelOptDistillConfig.from_yaml(file)
    starts = ["skip_lm_los: unknown key", "logits_loss_weight=x", "train: unknown key", "kd_loss_scale=-1.0: must be"]
    lines = caught.value.lines
    assert len(lines) == len(starts)
    assert all(line.startswith(f"model.kd_config.{start}") for line, start in zip(lines, starts, strict=True)), lines
    assert all(str(file) in line for line in lines)


def test_a_file_of_the_losses_is_read_without_what_reads_runs() -> None:
    code = (
        "import sys, megatron_kd.config.kd_config;"
        "print([name for name in sys.modules if name.startswith(('megatron_kd.resolve', 'megatron_kd.checks'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
