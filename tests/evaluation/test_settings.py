"""Values that an evaluation takes from its checkpoint's run, and those that give way to ranks and command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.run_config import save_run_config
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.evaluation.saved_model import SavedModel, saved_model
from megatron_kd.evaluation.settings import Evaluation, evaluation_of
from tests.tiny import tiny_config


def checkpoint(run: Path, **options: Any) -> SavedModel:
    """The files of a run that are read before its tensors."""
    folder = run / "checkpoints/iter_0000003"
    save_run_config(tiny_config(run, **options), folder / "run_config.yaml")
    (folder / "metadata.json").write_text("{}")
    return saved_model(run, "MODEL")


def evaluate(model: SavedModel, *argv: str, world_size: int = 1, **options: Any) -> Evaluation:
    return evaluation_of(model, None, argv, world_size=world_size, **options)


def layout(cfg: ConfigContainer) -> tuple[int, int, int]:
    return (
        cfg.model.tensor_model_parallel_size, cfg.model.pipeline_model_parallel_size, cfg.train.micro_batch_size
    )  # fmt: skip


def test_weights_come_from_the_checkpoint_and_the_rest_from_its_run(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, kd={"logit_kl_temperature": 3.0})
    found = evaluate(model)
    assert found.own and not found.model.is_huggingface
    assert found.cfg.checkpoint.pretrained_checkpoint == str(tmp_path / "checkpoints/iter_0000003")
    assert found.cfg.model.init is None and not found.cfg.checkpoint.save
    assert isinstance(found.cfg.model, GPTDistillationProvider)
    assert found.cfg.model.kd_config.logit_kl_temperature == 3.0 and found.cfg.model.teacher.init == "random"


def test_the_layout_is_the_runs_where_the_ranks_allow(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, tp=2, sequence_parallel=True)
    assert layout(evaluate(model, world_size=2).cfg) == (2, 1, 8)
    assert layout(evaluate(model, world_size=4).cfg) == (2, 1, 4)  # two copies share the batch of 8
    alone = evaluate(model, world_size=1).cfg
    assert layout(alone) == (1, 1, 8) and not alone.model.sequence_parallel
    asked = evaluate(model, "model.pipeline_model_parallel_size=2", world_size=2).cfg
    assert isinstance(asked.model, GPTDistillationProvider)
    assert layout(asked) == (1, 2, 8) and asked.model.teacher.pipeline_model_parallel_size == 2
    given = evaluate(model, "train.micro_batch_size=2", world_size=2).cfg
    assert layout(given) == (2, 1, 2)


def test_a_place_of_the_teacher_that_does_not_fit_is_found_anew(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    file = model.folder / "run_config.yaml"
    text = file.read_text().replace("teacher_device_strategy: auto", "teacher_device_strategy: gpu0")
    file.write_text(text.replace("teacher_rank: 0", "teacher_rank: 1"))
    assert evaluate(model, world_size=2).cfg.model.teacher_device_strategy == "gpu0"  # type: ignore[union-attr]
    assert evaluate(model, world_size=1).cfg.model.teacher_device_strategy == "auto"  # type: ignore[union-attr]


def test_other_data_takes_the_place_of_the_runs(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    words = [f"dataset.text_path={tmp_path}/text.txt", f"tokenizer.tokenizer_model={tmp_path}/tokenizer.json"]
    words.append("tokenizer.tokenizer_type=huggingface")
    data = evaluate(checkpoint(tmp_path / "run"), *words).cfg.dataset
    assert (data.mock, data.split, data.text_path) == (False, "0,1,0", f"{tmp_path}/text.txt")


def test_a_teacher_that_is_gone_matters_only_where_it_is_asked(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    file = model.folder / "run_config.yaml"
    head, teacher = file.read_text().split("  teacher:\n")
    teacher = teacher.replace("init: random", "init: null", 1).replace("hf_path: null", "hf_path: gone/teacher", 1)
    file.write_text(f"{head}  teacher:\n{teacher}")
    with pytest.raises(ConfigError, match=r"model\.teacher\.hf_path=gone/teacher"):
        evaluate(model)
    alone = evaluate(model, with_teacher=False)
    assert not alone.own and not isinstance(alone.cfg.model, GPTDistillationProvider)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    words = ["validation.eval_iters=0", "model.kd_config.kd_loss_scale=2.0", "model.seq_length=0"]
    with pytest.raises(ConfigError) as raised:
        evaluate(checkpoint(tmp_path), *words)
    found = raised.value.lines
    assert [line.partition("=")[0].partition(":")[0] for line in found[:3]] == [
        "model.kd_config.kd_loss_scale", "validation.eval_iters", "model.seq_length"]  # fmt: skip


def test_a_folder_is_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert saved_model(tmp_path, "MODEL") == SavedModel(tmp_path, is_huggingface=True)
    with pytest.raises(InputError, match=r"^MODEL=.*/none: no checkpoint there.*or give a Hugging Face folder"):
        saved_model(tmp_path / "none", "MODEL")
