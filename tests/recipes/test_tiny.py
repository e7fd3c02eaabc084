"""The tiny recipe at tensor and pipeline parallelism, with the overrides of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.recipes.launch import checkout, run_recipe
from tests.tiny import read_metrics


@pytest.mark.slow
def test_tensor_and_pipeline_parallel_from_the_command_line(tmp_path: Path) -> None:
    words = [
        "model.tensor_model_parallel_size=2",
        "model.pipeline_model_parallel_size=2",
        "model.teacher.tensor_model_parallel_size=2",
        "model.teacher.pipeline_model_parallel_size=2",
        "train.train_iters=20",
        # In place of the corpus and the trained teacher:
        "model.init=random",
        "model.teacher.init=random",
        "model.teacher.checkpoint=null",
        "dataset={train_data_path: null, valid_data_path: null, mock: true}",
        "tokenizer.tokenizer_model=null",
        "model.vocab_size=2048",
        "model.teacher.vocab_size=2048",
        "logger.run_dir=run",
    ]
    assert run_ranks(4, run_recipe, "recipes/tiny/distill_tiny.py", words, checkout(tmp_path)) == [0] * 4
    steps = [(record["step"], record["split"]) for record in read_metrics(tmp_path / "run")]
    assert steps == [(10, "train"), (20, "train"), (20, "validation")]
    assert (tmp_path / "run/checkpoints/iter_0000020").is_dir()
    assert (tmp_path / "run/exit_code").read_text() == "0\n"
