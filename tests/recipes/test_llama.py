"""The documented commands of the Llama recipe: one through a real torchrun, the others on ranks that are there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.resolve.configuration import config_from_file
from tests.config.base import DOCUMENTED_YAML
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT, SMALL_LLAMA, checkout, run, run_recipe, torchrun
from tests.tiny import read_metrics

RECIPE = "recipes/llama/distill_llama32_3b-1b.py"
RUN_DIR = Path("runs/llama32_3b-1b")

MY_CUSTOM_CONFIG = DOCUMENTED_YAML
MY_CONFIG = """\
train:
  micro_batch_size: 64
  global_batch_size: 128
model:
  kd_config:
    logit_kl_temperature: 4.0
"""


def distilled(ranks: int, *words: str, cwd: Path) -> ConfigContainer:
    """Run the recipe with a command line; see `finished`."""
    assert run_ranks(ranks, run_recipe, RECIPE, [*words, *SMALL_LLAMA], cwd) == [0] * ranks
    return finished(cwd)


def finished(cwd: Path) -> ConfigContainer:
    """See that the recipe trained, evaluated and saved below `cwd`, and return the configuration it ran with."""
    folder = cwd / RUN_DIR
    assert (folder / "exit_code").read_text() == "0\n"
    assert [(r["step"], r["split"]) for r in read_metrics(folder)] == [(2, "train"), (2, "validation")]
    assert (folder / "checkpoints/iter_0000002").is_dir()
    return config_from_file(folder / "run_config.yaml")


def test_the_recipe_as_it_stands(tmp_path: Path) -> None:
    config = distilled(1, "train.global_batch_size=4", cwd=checkout(tmp_path))
    assert config.model.rope_scaling_factor == 32.0
    assert config.mixed_precision.precision == "bf16"


def test_with_a_file_of_distillation_settings(tmp_path: Path) -> None:
    (tmp_path / "my_custom_config.yaml").write_text(MY_CUSTOM_CONFIG)
    words = ["--config-file", "my_custom_config.yaml", "train.global_batch_size=4"]
    config = distilled(1, *words, cwd=checkout(tmp_path))
    assert config.model.kd_config.logit_kl_temperature == 2.0


def test_with_overrides(tmp_path: Path) -> None:
    words = ["model.tensor_model_parallel_size=2", "model.teacher.tensor_model_parallel_size=2"]
    config = distilled(2, *words, "train.global_batch_size=4", cwd=checkout(tmp_path))
    assert config.model.tensor_model_parallel_size == config.model.teacher.tensor_model_parallel_size == 2


@pytest.mark.slow
def test_with_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/my_config.yaml").write_text(MY_CONFIG)
    words = ["--config-file", "conf/my_config.yaml", "train.global_batch_size=512"]
    result = torchrun(2, RECIPE, *words, *SMALL_LLAMA, cwd=checkout(tmp_path))
    assert result.returncode == 0, result.stderr
    config = finished(tmp_path)
    assert (config.train.micro_batch_size, config.train.global_batch_size) == (64, 512)
    assert config.model.kd_config.logit_kl_temperature == 4.0


def test_without_weights_or_data_each_line_names_what_makes_them(tmp_path: Path) -> None:
    result = run([RECIPE], cwd=checkout(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    expected = {
        "model.hf_path=": "there is no such folder",
        "model.teacher.hf_path=": "there is no such folder",
        "dataset.data_path": "`megatron-kd preprocess --input TEXT --output-prefix data/llama3/text",
    }
    assert len(lines) == len(expected)
    for line, (field, cure) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"error: {field}")
        assert cure in line
    assert (tmp_path / RUN_DIR / "exit_code").read_text() == "2\n"


def test_under_torchrun_the_lines_come_once(tmp_path: Path) -> None:
    """torchrun returns 1 whatever a rank returned, and ends its own report with a traceback of its own."""
    result = torchrun(2, RECIPE, cwd=checkout(tmp_path))
    assert result.returncode == 1
    assert result.stderr.count("error: model.hf_path=") == 1
    assert "Traceback" not in result.stderr.partition("torch/distributed/elastic")[0]
    assert (tmp_path / RUN_DIR / "exit_code").read_text() == "2\n"


def test_validate_lists_every_problem_of_the_documented_command() -> None:
    words = ["model.hiden_size=8", "train.global_batch_size=7", "model.tensor_model_parallel_size=3"]
    started = time.monotonic()
    result = run(["-m", "megatron_kd.commands.cli", "validate", RECIPE, *words], cwd=ROOT)
    assert time.monotonic() - started < 10
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    for problem in (
        "model.hiden_size: unknown key; did you mean model.hidden_size?",
        "train.global_batch_size=7: must be a multiple of 2",
        "model.num_attention_heads=32, model.tensor_model_parallel_size=3",
        "model.num_query_groups=8, model.tensor_model_parallel_size=3",
    ):
        assert problem in result.stderr


def test_the_file_beside_the_recipe_fits_it() -> None:
    """On 8 ranks nothing is wrong but that there are no weights and no data here."""
    words = ["--config-file", "conf/llama32_3b-1b.yaml", "--world-size=8", *SMALL_LLAMA]
    result = run(["-m", "megatron_kd.commands.cli", "validate", RECIPE, *words], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "run_dir: runs/llama32_3b-1b-tp2" in result.stdout
