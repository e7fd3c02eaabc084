"""Every class of problem: an edit of a configuration that has none, and what its one line must say."""

from __future__ import annotations

import copy
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config import sections
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.kd_rules import kd_config_problems
from megatron_kd.config.schema import schema_of
from tests.config.base import distillation, edited, lines_of, plain
from tests.config.illegal import (
    BOTH_PP,
    BOTH_TP,
    BY_MODELOPT,
    CASES,
    FULL,
    RANGES,
    both,
    pair,
    pp,
    tp,
)
from tests.config.mismatches import MODELS, saved_model
from tests.data.tokens import write_tokens


@pytest.mark.parametrize(("edits", "expected"), CASES, ids=lambda case: str(case)[:60])
def test_each_problem_is_one_line_with_field_value_and_cure(edits: dict[str, Any], expected: list[str]) -> None:
    found = [line for line in lines_of(edited(distillation(), edits)) if all(word in line for word in expected)]
    assert len(found) == 1, lines_of(edited(distillation(), edits))


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"model.teacher_device_strategy": "gpu0", "model.teacher_rank": 2}, ["model.teacher_rank=2", "0 to 1"]),
        (
            {"model.teacher_device_strategy": "balanced", "model.teacher.pipeline_model_parallel_size": 4},
            ["model.teacher.pipeline_model_parallel_size=4", "takes 4 ranks", "2 are not"],
        ),
    ],
)
def test_a_placement_that_two_ranks_cannot_serve(edits: dict[str, Any], expected: list[str]) -> None:
    (found,) = lines_of(edited(distillation(), edits), world_size=2)
    assert all(word in found for word in expected), found


def test_auto_is_refused_only_where_no_strategy_serves() -> None:
    layout = {"model.tensor_model_parallel_size": 2}
    assert lines_of(edited(distillation(), layout), world_size=2) == []
    nowhere = layout | {"model.teacher.pipeline_model_parallel_size": 4}
    found = lines_of(edited(distillation(), nowhere), world_size=2)
    assert all(line.startswith("model.teacher_device_strategy=auto, model.") for line in found)
    assert {"shares the student's layout" in line for line in found} == {True, False}


@pytest.mark.parametrize(("edits", "expected"), CASES, ids=lambda case: str(case)[:60])
def test_a_single_mistake_is_told_once(edits: dict[str, Any], expected: list[str]) -> None:
    lines = lines_of(edited(distillation(), edits))
    assert len(lines) == len(set(lines))
    mistakes_in_both_models = len({name.replace(".teacher.", ".") for name in edits}) < len(edits)
    assert len(lines) <= 1 + mistakes_in_both_models, lines


def test_nothing_is_wrong_with_good_configurations(tmp_path: Path) -> None:
    assert lines_of(distillation()) == []
    assert lines_of(distillation(), world_size=4) == []
    assert lines_of(edited(distillation(), tp(2) | pp(2)), world_size=4) == []
    assert lines_of(edited(distillation(), tp(2) | both("sequence_parallel", True)), world_size=2) == []
    assert lines_of(plain()) == []
    assert lines_of(edited(distillation(), FULL)) == []
    assert lines_of(edited(distillation(), pair("decoder.layers.3.input_layernorm") | pp(2))) == []
    (tmp_path / "checkpoints" / "iter_0000007").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "checkpoints"):
        weights = {"checkpoint.pretrained_checkpoint": str(folder), "model.init": None}
        assert lines_of(edited(distillation(), weights)) == []
    assert lines_of(distillation(train__global_batch_size=None), world_size=3) == []
    (tmp_path / "a.jsonl").write_text("{}\n")
    text = {"dataset.text_path": str(tmp_path / "a.jsonl"), "dataset.mock": False, "tokenizer.tokenizer_model": "."}
    epochs = {"train.train_iters": None, "train.num_epochs": 2.0, "scheduler.lr_warmup_iters": 5}
    assert lines_of(edited(distillation(), text | epochs)) == []
    block = {"model.recompute_method": "block", "model.recompute_num_layers": 1}
    assert lines_of(edited(distillation(), pair("decoder.layers.1.mlp") | FULL | block | BY_MODELOPT)) == []
    assert lines_of(edited(distillation(), pair("decoder.layers.1.mlp") | FULL)) == []


def test_the_configuration_is_not_changed() -> None:
    config = edited(distillation(), {"model.hidden_size": 60, "train.global_batch_size": 7})
    before = copy.deepcopy(config)
    assert lines_of(config, 3) == lines_of(config, 3)
    assert config == before


@pytest.mark.parametrize("name", RANGES)
def test_every_number_has_its_range(name: str) -> None:
    outside, inside, words = RANGES[name]
    lines = lines_of(edited(distillation(), {name: outside}), world_size=2)
    assert any(line.startswith(f"{name}={outside}: {words}") for line in lines), lines
    lines = lines_of(edited(distillation(), {name: inside}), world_size=2)
    assert not any(words in line for line in lines), lines


def test_no_number_is_without_a_range() -> None:
    numbers = {int, float, int | None, float | None}
    schema = schema_of(distillation())
    named = {".".join(path) for path, annotation in schema.leaves.items() if annotation in numbers}
    assert named | {"checkpoint.resume"} == set(RANGES)  # "auto", "never" or a step


@pytest.mark.parametrize(
    ("edits", "world_size", "expected"),
    [
        ({}, 3, ["train.global_batch_size=8", "3 data-parallel ranks", "6 or 12"]),
        (tp(2), 3, [BOTH_TP[0] + "=2", "takes 2 ranks", "2 or 4"]),
        (tp(4), 2, [BOTH_TP[0] + "=4", "takes 4 ranks", "4 or 8"]),
        (tp(2) | pp(2), 6, [BOTH_PP[0] + "=2", "takes 4 ranks", "4 or 8"]),
    ],
)
def test_ranks(edits: dict[str, Any], world_size: int, expected: list[str]) -> None:
    lines = lines_of(edited(distillation(), edits), world_size)
    assert len(lines) == 1
    assert all(word in lines[0] for word in expected), lines


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"pipeline_model_parallel_size": 1}, ["virtual_pipeline_model_parallel_size=2", "more than one stage"]),
        ({"num_layers": 6}, ["model.num_layers=6", "2 x 2 chunks"]),
    ],
)
def test_virtual_pipeline_without_a_teacher(edits: dict[str, Any], expected: list[str]) -> None:
    layout = {"num_layers": 8, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    config = edited(plain(), {f"model.{name}": value for name, value in (layout | edits).items()})
    lines = lines_of(config)
    assert len(lines) == 1
    assert all(word in lines[0] for word in expected), lines


def test_the_interleaved_schedule_takes_whole_groups_of_micro_batches() -> None:
    config = plain(
        model__num_layers=8,
        model__pipeline_model_parallel_size=2,
        model__virtual_pipeline_model_parallel_size=2,
        train__global_batch_size=3,
    )
    (line,) = lines_of(config, world_size=2)
    assert "train.global_batch_size=2 or 4" in line


def test_the_vocabulary_is_checked_again_once_the_tokenizer_is_loaded() -> None:
    config = distillation()
    assert lines_of(config, tokenizer_ids=1000) == []
    lines = lines_of(config, tokenizer_ids=1001)
    assert len(lines) == 2
    assert "model.vocab_size=1000" in lines[0]
    assert "at least 1001" in lines[0]
    assert "model.teacher.vocab_size=1000" in lines[1]


@pytest.mark.parametrize("teacher", [900, 1001, 4000])
def test_the_models_may_have_different_numbers_of_ids(teacher: int) -> None:
    assert lines_of(distillation(model__teacher__vocab_size=teacher, model__kd_config__logit_kl_topk=900)) == []


def test_a_tokenizer_of_the_teacher_without_a_teacher() -> None:
    config = plain(tokenizer__tokenizer_model=".", tokenizer__teacher_tokenizer_model=".")
    (line,) = lines_of(config)
    assert "this run has no teacher; set tokenizer.teacher_tokenizer_model=null" in line


def test_an_unknown_vocabulary_must_be_divisible_whatever_it_is() -> None:
    config = edited(distillation(), both("vocab_size", None) | {"tokenizer.tokenizer_model": "."} | tp(8))
    assert lines_of(config) == []
    (line,) = lines_of(edited(config, {"model.make_vocab_size_divisible_by": 4}))
    assert "set model.make_vocab_size_divisible_by=8" in line


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Text, and enough of it for each split."""
    return write_tokens(tmp_path / "text", [range(200)] * 200)


def on_disk(**paths: Any) -> dict[str, Any]:
    return {"dataset.mock": False, "tokenizer.tokenizer_model": "."} | {f"dataset.{k}": v for k, v in paths.items()}


def test_data_on_disk(data: str) -> None:
    good = [
        on_disk(data_path=[data]),
        on_disk(data_path=[0.3, data, 0.7, data]),
        on_disk(train_data_path=[data], valid_data_path=[data]),
        on_disk(train_data_path=[data]) | {"validation.eval_iters": 0},
        on_disk(data_path=[data], split="1,0,0") | {"validation.eval_iters": 0},
    ]
    for edits in good:
        assert lines_of(edited(distillation(), edits)) == []


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ({"data_path": 1, "split": "0,1,1"}, ["dataset.split='0,1,1'", "train"]),
        ({"data_path": 1, "split": "9,0,1"}, ["dataset.split='9,0,1'", "eval_iters=0"]),
        ({"train_data_path": 1}, ["dataset.valid_data_path=null", "eval_iters=0"]),
        ({"valid_data_path": 1}, ["dataset.train_data_path=null", "set dataset.train_data_path"]),
        ({"data_path": 1, "mock": True}, ["dataset.mock=true", "dataset.data_path=", "one place"]),
        ({"data_path": 1, "train_data_path": 1, "valid_data_path": 1}, ["dataset.train_data_path=", "one place"]),
    ],
)
def test_data_that_does_not_serve(data: str, paths: dict[str, Any], expected: list[str]) -> None:
    edits = on_disk(**{name: [data] if value == 1 and name != "mock" else value for name, value in paths.items()})
    lines = lines_of(edited(distillation(), edits))
    assert len(lines) == 1
    assert all(word in lines[0] for word in expected), lines


def test_conversations_on_disk_are_told_from_text(data: str) -> None:
    (line,) = lines_of(edited(distillation(), on_disk(data_path=[data], chat=True)))
    assert "dataset.chat=true" in line and "is text, made without --chat; set dataset.chat=false" in line
    Path(f"{data}.loss_mask.bin").write_bytes(bytes(200 * 200))
    (line,) = lines_of(edited(distillation(), on_disk(data_path=[data])))
    assert "dataset.chat=false" in line and "is conversations; set dataset.chat=true" in line
    (line,) = lines_of(edited(distillation(), on_disk(data_path=[data], split="100,1e-9")))
    assert "is conversations; set dataset.chat=true" in line, "its tokens as text are not counted"
    chat = on_disk(data_path=[0.5, data, 0.5, data], chat=True, packed_sequence=True, long_samples="drop")
    assert lines_of(edited(distillation(), chat)) == []
    (line,) = lines_of(edited(distillation(), chat | {"dataset.eod_mask_loss": True}))
    assert "dataset.eod_mask_loss=true" in line and "only what the assistant says" in line


def test_conversations_as_text_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    text = {"dataset.mock": False, "dataset.text_path": str(tmp_path / "a.txt"), "tokenizer.tokenizer_model": "."}
    (line,) = lines_of(edited(distillation(), text | {"dataset.chat": True}))
    assert "conversations are lines of JSON; give a .jsonl file" in line


@pytest.mark.parametrize(
    ("kind", "field"), [("huggingface", "tokenizer.tokenizer_model=null"), ("null", "tokenizer.vocab_size=null")]
)
def test_data_on_disk_needs_a_tokenizer(data: str, kind: str, field: str) -> None:
    edits = on_disk(data_path=[data]) | {"tokenizer.tokenizer_model": None, "tokenizer.tokenizer_type": kind}
    (line,) = lines_of(edited(distillation(), edits))
    assert field in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (line,) = lines_of(distillation(logger__run_dir=str(tmp_path / "run")))
    assert "logger.run_dir" in line
    assert "cannot be written" in line


def test_a_step_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "iter_0000007").mkdir(parents=True)
    assert lines_of(distillation(logger__run_dir=str(tmp_path), checkpoint__resume=7)) == []


def test_settings_of_the_losses_alone() -> None:
    assert list(kd_config_problems(ModelOptDistillConfig())) == []
    bad = ModelOptDistillConfig(kd_loss_scale=0.0, logit_kl_temperature=-1.0, logit_layers=["a", "b"])
    lines = [str(problem) for problem in kd_config_problems(bad)]
    assert [line.split("=")[0].split(".")[-1] for line in lines] == [
        "kd_loss_scale",
        "logit_kl_temperature",
        "logit_layers",
    ]


def test_every_section_has_defaults() -> None:
    for name in vars(sections):
        cls = getattr(sections, name)
        if isinstance(cls, type) and name.endswith("Config"):
            assert fields(cls())


def test_text_needs_bytes_a_tokenizer_and_all_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    text = {"dataset.mock": False, "dataset.text_path": str(tmp_path / "a.txt"), "tokenizer.tokenizer_model": "."}
    (line,) = lines_of(edited(distillation(), text))
    assert "is empty" in line
    (tmp_path / "a.txt").write_text("a\n")
    (line,) = lines_of(edited(distillation(), text | {"dataset.mock": True}))
    assert "dataset.mock=true, dataset.text_path=" in line
    assert "one place" in line
    (line,) = lines_of(edited(distillation(), text | {"train.num_epochs": 2.0}))
    assert "train.train_iters=1000, train.num_epochs=2.0: the length is given twice" in line
    (line,) = lines_of(edited(distillation(), text | {"dataset.split": "1,0,0"}))
    assert "leaves no data to validate on" in line
    null = {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 1000}
    (line,) = lines_of(edited(distillation(), text | null))
    assert "dataset.text_path" in line
    assert "tokenizer.tokenizer_type=huggingface" in line


def test_an_interleaved_pipeline_wants_more_than_one_micro_batch_a_rank() -> None:
    chunks = {"model.pipeline_model_parallel_size": 2, "model.virtual_pipeline_model_parallel_size": 2}
    config = edited(plain(model__num_layers=4, train__global_batch_size=None), chunks)
    (line,) = lines_of(config, world_size=2)
    assert line.startswith("train.global_batch_size=null: must be a multiple of 2")


@pytest.mark.parametrize(
    ("field", "model"), [("checkpoint.pretrained_checkpoint", "model"), ("model.teacher.checkpoint", "model.teacher")]
)
def test_a_checkpoint_of_a_model_of_other_sizes(field: str, model: str, tmp_path: Path) -> None:
    layers = MODELS[f"{model}.num_layers"]
    for name, edits in (("other", {"model.num_layers": 6, "model.hidden_size": 128}), ("same", {})):
        saved_model(tmp_path / name, {**MODELS, "model.num_layers": layers, **edits})
    weights = {**MODELS, f"{model}.init": None}
    assert lines_of(edited(distillation(), {**weights, field: str(tmp_path / "same")})) == []
    lines = lines_of(edited(distillation(), {**weights, field: str(tmp_path / "other")}))
    names = [line.split("=")[0] for line in lines]
    # Widths that follow from the hidden size are others too.
    assert names == [f"{model}.{name}" for name in ("num_layers", "hidden_size", "ffn_hidden_size", "kv_channels")]
    assert lines[0].endswith(f"has 6; set {model}.num_layers=6, or give another checkpoint")
