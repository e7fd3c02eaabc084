"""Every class of problem: an edit of a configuration that has none, and what its one line must say."""

from __future__ import annotations

import copy
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config import sections
from megatron_kd.config.problems import problems
from megatron_kd.config.problems.distillation import kd_config_problems
from megatron_kd.config.problems.ranges import (
    FRACTION,
    KD_RULES,
    MODEL_RULES,
    NOT_NEGATIVE,
    OF_HEAD,
    POSITIVE,
    SECTION_RULES,
    SEED,
    SHARE,
    TEACHER_RULES,
    TWO_OR_MORE,
)
from megatron_kd.config.schema import schema_of
from megatron_kd.distillation.config import ModelOptDistillConfig
from tests.config.base import distillation, edited, plain

PAIRS = "model.kd_config.intermediate_layer_pairs"
BOTH_TP = ("model.tensor_model_parallel_size", "model.teacher.tensor_model_parallel_size")
BOTH_PP = ("model.pipeline_model_parallel_size", "model.teacher.pipeline_model_parallel_size")


def tp(size: int) -> dict[str, Any]:
    return dict.fromkeys(BOTH_TP, size)


def pp(size: int) -> dict[str, Any]:
    return dict.fromkeys(BOTH_PP, size)


def both(name: str, value: Any) -> dict[str, Any]:
    return {f"model.{name}": value, f"model.teacher.{name}": value}


def pair(student: str, teacher: str = "decoder.final_layernorm") -> dict[str, Any]:
    return {PAIRS: [[student, teacher]]}


BY_MODELOPT = {"model.kd_config.loss_balancer": "modelopt"}
FULL = {"model.recompute_granularity": "full", "model.recompute_method": "uniform", "model.recompute_num_layers": 1}

# (edits, what the one line must contain: the fields and a word of the cure)
COLOCATED = {"model.teacher_device_strategy": "colocated"}
CASES: list[tuple[dict[str, Any], list[str]]] = [
    # fake quantisation
    ({"model.teacher.quantization": "int8"}, ["model.teacher.quantization=int8", "model.teacher_quantization=int8"]),
    ({"model.quantization": "int4_weight_only", **tp(2), "model.hidden_size": 128, "model.ffn_hidden_size": 256},
     ["model.quantization=int4_weight_only", "model.tensor_model_parallel_size=2", "128 inputs in a row",
      "the outputs of attention are 128 over 2 ranks"]),
    ({"model.quantization": "nvfp4", "dist.distributed_backend": "gloo"},
     ["model.quantization=nvfp4, dist.distributed_backend=gloo", "CUDA"]),
    # architecture
    ({"model.num_query_groups": 3}, ["model.num_attention_heads=8", "model.num_query_groups=3", "divisor"]),
    ({"model.hidden_size": 60}, ["model.hidden_size=60", "model.num_attention_heads=8", "model.kv_channels"]),
    ({"model.teacher.hidden_size": 60}, ["model.teacher.hidden_size=60", "model.teacher.num_attention_heads=8"]),
    ({"model.kv_channels": 7}, ["model.kv_channels=7", "even"]),
    ({"model.hidden_size": 56}, ["model.hidden_size=56", "rotary_percent=1.0", "even"]),
    (
        {"model.rope_scaling": True, "model.position_embedding_type": "none"},
        ["model.rope_scaling=true", "model.position_embedding_type=none", "rope_scaling=false"],
    ),
    ({"model.recompute_granularity": "full"}, ["model.recompute_method=null", "recompute_method=uniform"]),
    ({"model.recompute_method": "block"}, ["model.recompute_method=block", "recompute_granularity=full"]),
    (
        {"model.recompute_granularity": "selective", "model.recompute_num_layers": 1},
        ["model.recompute_num_layers=1", "null"],
    ),
    ({**FULL, "model.recompute_num_layers": 5}, ["model.recompute_num_layers=5", "at most 4"]),
    ({**FULL, **pp(2), "model.recompute_num_layers": 3}, ["model.recompute_num_layers=3", "at most 2"]),
    # vocabulary
    (
        {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 1000, "model.teacher.vocab_size": 900},
        ["model.teacher.vocab_size=900", "tokenizer has 1000 ids", "at least 1000"],
    ),
    (
        {"model.teacher.vocab_size": 900, "model.kd_config.logit_kl_topk": 901},
        ["model.kd_config.logit_kl_topk=901", "share 900 ids", "at most"],
    ),
    (
        {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 2000, "model.teacher.vocab_size": None,
         "model.vocab_size": 2000, "model.make_vocab_size_divisible_by": 1, **tp(8),
         "model.teacher.make_vocab_size_divisible_by": 1999},
        ["model.make_vocab_size_divisible_by=1", "3998 wide", "make_vocab_size_divisible_by=8"],
    ),
    (both("make_vocab_size_divisible_by", 1) | both("vocab_size", 1001) | tp(2),
     ["model.make_vocab_size_divisible_by=1", "1001 wide", "make_vocab_size_divisible_by=2"]),
    # tensor, sequence and context parallelism
    ({"model.num_attention_heads": 4, **tp(8)}, ["model.num_attention_heads=4", BOTH_TP[0] + "=8", "divisor"]),
    ({"model.num_query_groups": 2, **tp(4)}, ["model.num_query_groups=2", BOTH_TP[0] + "=4", "at most 2"]),
    (
        both("num_attention_heads", 12) | both("hidden_size", 96) | tp(4) | {"model.num_query_groups": 6},
        ["model.num_query_groups=6", BOTH_TP[0] + "=4", "divisor"],
    ),
    ({"model.ffn_hidden_size": 99, **tp(2)}, ["model.ffn_hidden_size=99", BOTH_TP[0] + "=2", "divisor"]),
    ({"model.hidden_size": 63, "model.num_attention_heads": 8, "model.kv_channels": 8, **tp(8)},
     ["model.hidden_size=63", "252", "divisor"]),
    ({"model.tensor_model_parallel_size": 2} | COLOCATED,
     [BOTH_TP[0] + "=2", BOTH_TP[1] + "=1", "shares the student's layout", "strategy=balanced or gpu0 or cpu"]),
    (both("sequence_parallel", True) | {"model.teacher.num_layers": 8},
     ["model.sequence_parallel=true", BOTH_TP[0] + "=1", "sequence_parallel=false"]),
    ({"model.sequence_parallel": True, **tp(2)} | COLOCATED,
     ["model.sequence_parallel=true", "model.teacher.sequence_parallel=false", "set model.teacher"]),
    (both("sequence_parallel", True) | both("seq_length", 1023) | tp(2), ["model.seq_length=1023", "multiple"]),
    (both("context_parallel_size", 2), ["model.context_parallel_size=2", "TransformerEngine"]),
    # pipeline parallelism
    ({"model.num_layers": 5, **pp(2)}, ["model.num_layers=5", BOTH_PP[0] + "=2", "same number of layers"]),
    ({"model.teacher.num_layers": 5, **pp(2)}, ["model.teacher.num_layers=5", BOTH_PP[1] + "=2"]),
    ({"model.pipeline_model_parallel_size": 2} | COLOCATED, [BOTH_PP[0] + "=2", BOTH_PP[1] + "=1", "layout"]),
    ({"model.virtual_pipeline_model_parallel_size": 2, **pp(2)} | COLOCATED,
     ["model.virtual_pipeline_model_parallel_size=2", "ModelOpt's pipeline mechanism cannot serve"]),
    # batch
    ({"train.train_iters": None}, ["train.train_iters=null", "train.num_epochs=null", "set one"]),
    ({"train.num_epochs": 2.0}, ["train.num_epochs=2.0, dataset.mock=true", "no epochs"]),
    ({"train.global_batch_size": 7}, ["train.global_batch_size=7", "micro_batch_size=2", "6 or 8"]),
    ({"train.global_batch_size": 1}, ["train.global_batch_size=1", "train.global_batch_size=2"]),
    # distillation
    ({"model.teacher.seq_length": 512}, ["model.seq_length=1024", "model.teacher.seq_length=512", "same tokens"]),
    ({"model.kd_config.logit_layers": ["a", "output_layer"]}, ["model.kd_config.logit_layers=[a,", "output_layer]"]),
    ({"model.kd_config.logit_kl_topk": 8, "model.kd_config.logits_form": "fused"},
     ["logit_kl_topk=8", "logits_form=auto"]),
    ({"model.kd_config.logit_kl_topk": 8, "model.kd_config.logits_loss_kind": "jsd"},
     ["logit_kl_topk=8", "logits_loss_kind=jsd", "forward_kl"]),
    ({PAIRS: [["decoder.final_layernorm"]]}, [PAIRS, "[decoder.final_layernorm]", "pair"]),
    ({PAIRS: [["decoder.final_layernorm"] * 2] * 2}, [PAIRS, "twice"]),
    (pair("decoder.norm"), [PAIRS, "decoder.norm", "decoder.layers.N"]),
    (pair("decoder.layers.4.mlp"), [PAIRS, "decoder.layers.4.mlp", "layers 0 to 3"]),
    (pair("decoder.final_layernorm", "decoder.layers.8.mlp"), [PAIRS, "model.teacher has layers 0 to 7"]),
    (pair("decoder.layers.1.mlp") | pp(2) | COLOCATED,
     [PAIRS, "the student's layer is on pipeline stage 0", "or set model.teacher_device_strategy=balanced"]),
    (pair("decoder.final_layernorm", "decoder.layers.3.mlp") | pp(2) | COLOCATED, [PAIRS, "the teacher's on 0"]),
    (pair("decoder.layers.1.mlp", "decoder.layers.1.mlp") | pp(2) | BY_MODELOPT,
     [PAIRS, "last pipeline", "=global"]),
    (pair("decoder.layers.1.mlp") | FULL | BY_MODELOPT, [PAIRS, "recomputed", "loss_balancer=global"]),
    (pair("decoder.layers.1.mlp") | FULL | BY_MODELOPT
     | {"model.recompute_method": "block", "model.recompute_num_layers": 2}, [PAIRS, "recomputed"]),
    ({PAIRS: [["decoder.final_layernorm", "decoder.final_layernorm", "l2"]]}, [PAIRS, "l2", "cosine, mse, smooth_l1"]),
    (pair("decoder.layers.1.mlp.linear_fc1") | tp(2), [PAIRS, "split over", "norm"]),
    (pair("decoder.layers.1.self_attention.linear_qkv"), [PAIRS, "model.hidden_size", "norm"]),
    ({"model.teacher_dtype": "bfloat16", **pp(2)} | COLOCATED,
     ["model.teacher_dtype=bfloat16", "precision=fp32", "concatenated", "balanced"]),
    ({"model.teacher_micro_batch_size": 8} | COLOCATED, ["model.teacher_micro_batch_size=8", "=null"]),
    ({"model.teacher_device_strategy": "gpu0", "model.teacher.tensor_model_parallel_size": 2},
     ["model.teacher.tensor_model_parallel_size=2", "gpu0", "strategy=balanced"]),
    ({"model.teacher_device_strategy": "cpu", "model.teacher.pipeline_model_parallel_size": 2},
     ["model.teacher.pipeline_model_parallel_size=2", "cpu", "strategy=balanced"]),
    ({"model.teacher_device_strategy": "balanced", "model.teacher.virtual_pipeline_model_parallel_size": 2}
     | {"model.teacher.pipeline_model_parallel_size": 2}, ["model.teacher.virtual_pipeline", "forward only"]),
    (pair("decoder.layers.1.mlp", "decoder.layers.1.mlp.linear_fc1") | {"model.teacher_device_strategy": "gpu0"},
     [PAIRS, "no hidden state", "strategy=colocated"]),
    ({"model.kd_config.logits_form": "fused", "model.kd_config.loss_balancer": "modelopt"},
     ["model.kd_config.logits_form=fused", "loss_balancer=modelopt", "logits_form=auto"]),
    # weights
    ({"model.init": None}, ["checkpoint.pretrained_checkpoint=null", "model.init=null", "make distill", "=random"]),
    ({"model.teacher.init": None}, ["model.teacher.checkpoint=null", "pretrain_tiny.py", "iter_0001000"]),
    ({"checkpoint.pretrained_checkpoint": "."}, ["model.init=random", "two places"]),
    ({"model.teacher.checkpoint": "."}, ["model.teacher.init=random", "two places"]),
    ({"model.checkpoint": "."}, ["model.checkpoint='.'", "checkpoint.pretrained_checkpoint=DIR"]),
    ({"model.checkpoint": ".", "model.init": None}, ["model.checkpoint='.'", "checkpoint.pretrained_checkpoint=DIR"]),
    ({"checkpoint.pretrained_checkpoint": "no/such", "model.init": None},
     ["checkpoint.pretrained_checkpoint=no/such", "no such folder", "make distill"]),
    ({"checkpoint.pretrained_checkpoint": str(Path(__file__).parent), "model.init": None},
     ["checkpoint.pretrained_checkpoint=", "no checkpoint in this folder", "iter_0001000"]),
    ({"model.teacher.checkpoint": "no/such", "model.teacher.init": None}, ["model.teacher.checkpoint=no/such"]),
    # data
    ({"dataset.mock": False, "tokenizer.tokenizer_model": "."},
     ["dataset.data_path=null", "dataset.mock=false", "megatron-kd preprocess --input TEXT"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["no/data"]},
     ["dataset.data_path", "no/data.bin and no/data.idx", "preprocess", "--output-prefix no/data"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["no/data.bin"]},
     ["dataset.data_path", "write no/data"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": [0.5, "a", "b"]},
     ["dataset.data_path=[0.5, a, b]", "a weight before every prefix"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": [-1.0, "a"]},
     ["dataset.data_path=[-1.0, a]", "greater than 0"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": []},
     ["dataset.data_path=[]", "empty"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.data_path": ["a.jsonl"]},
     ["dataset.data_path", "a.jsonl is text", "set dataset.text_path"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.text_path": "no.txt"},
     ["dataset.text_path=no.txt", "no such file"]),
    ({"dataset.mock": False, "tokenizer.tokenizer_model": ".", "dataset.text_path": "a.csv"},
     ["dataset.text_path=a.csv", ".txt, .jsonl, .json", "dataset.data_path=[PREFIX]"]),
    ({"dataset.chat": True}, ["dataset.chat=true, dataset.mock=true", "no conversations"]),
    ({"dataset.packed_sequence": True}, ["dataset.packed_sequence=true, dataset.chat=false", "only conversations"]),
    ({"dataset.long_samples": "drop"}, ["dataset.long_samples=drop, dataset.chat=false", "only conversations"]),
    ({"dataset.split": "1,2"}, ["dataset.split='1,2'", "949,50,1"]),
    ({"dataset.split": "0,0,0"}, ["dataset.split='0,0,0'", "three numbers"]),
    ({"dataset.split": "a,b,c"}, ["dataset.split=a,b,c", "three numbers"]),
    ({"tokenizer.tokenizer_model": "no/such"}, ["tokenizer.tokenizer_model=no/such", "download"]),
    ({"tokenizer.tokenizer_model": ".", "tokenizer.teacher_tokenizer_model": "no/such"},
     ["tokenizer.teacher_tokenizer_model=no/such", "download"]),
    ({"tokenizer.teacher_tokenizer_model": "."},
     ["tokenizer.teacher_tokenizer_model='.'", "tokenizer.tokenizer_model=null", "set tokenizer.tokenizer_model"]),
    (both("vocab_size", None), ["dataset.mock=true", "model.vocab_size=null", "set model.vocab_size"]),
    ({"dataset.path_to_cache": __file__}, ["dataset.path_to_cache", "is a file"]),
    # optimizer, schedule, data parallelism
    ({"optimizer.min_lr": 1.0}, ["optimizer.min_lr=1.0", "optimizer.lr=0.0003", "lower"]),
    ({"ddp.overlap_param_gather": True}, ["ddp.overlap_param_gather=true", "ddp.overlap_grad_reduce=true"]),
    ({"ddp.overlap_param_gather": True, "ddp.overlap_grad_reduce": True, "ddp.use_distributed_optimizer": False},
     ["ddp.overlap_param_gather=true", "ddp.use_distributed_optimizer=true"]),
    ({"scheduler.lr_warmup_iters": 1000}, ["scheduler.lr_warmup_iters=1000", "train.train_iters=1000"]),
    ({"scheduler.lr_warmup_iters": 9, "scheduler.lr_decay_iters": 9}, ["scheduler.lr_decay_iters=9", "lower"]),
    ({"scheduler.lr_warmup_init": 1.0}, ["scheduler.lr_warmup_init=1.0", "optimizer.lr"]),
    ({"scheduler.lr_decay_style": "WSD"}, ["scheduler.lr_wsd_decay_iters=null", "set scheduler.lr_wsd_decay_iters"]),
    ({"scheduler.lr_warmup_fraction": 1.0}, ["scheduler.lr_warmup_fraction=1.0", "less than 1"]),
    ({"scheduler.lr_warmup_fraction": 0.5, "scheduler.lr_decay_style": "WSD", "scheduler.lr_wsd_decay_iters": 501},
     ["scheduler.lr_warmup_fraction=0.5", "scheduler.lr_wsd_decay_iters=501", "do not fit"]),
    ({"scheduler.lr_decay_style": "WSD", "scheduler.lr_wsd_decay_iters": 1001},
     ["scheduler.lr_wsd_decay_iters=1001", "do not fit"]),
    ({"scheduler.start_weight_decay": 0.5}, ["scheduler.start_weight_decay=0.5", "cannot fall"]),
    ({"scheduler.end_weight_decay": 0.5}, ["scheduler.end_weight_decay=0.5", "weight_decay_incr_style=linear"]),
    # what the run writes
    ({"logger.run_dir": f"{__file__}/run"}, ["logger.run_dir", "is a file"]),
    ({"checkpoint.resume": 7}, ["checkpoint.resume=7", "iter_0000007", "auto"]),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "expected"), CASES, ids=lambda case: str(case)[:60])
def test_each_problem_is_one_line_with_field_value_and_cure(edits: dict[str, Any], expected: list[str]) -> None:
    found = [line for line in problems(edited(distillation(), edits)) if all(word in line for word in expected)]
    assert len(found) == 1, problems(edited(distillation(), edits))


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
    (found,) = problems(edited(distillation(), edits), world_size=2)
    assert all(word in found for word in expected), found


def test_auto_is_refused_only_where_no_strategy_serves() -> None:
    layout = {"model.tensor_model_parallel_size": 2}
    assert problems(edited(distillation(), layout), world_size=2) == []
    nowhere = layout | {"model.teacher.pipeline_model_parallel_size": 4}
    found = problems(edited(distillation(), nowhere), world_size=2)
    assert all(line.startswith("model.teacher_device_strategy=auto: ") for line in found)
    assert {"shares the student's layout" in line for line in found} == {True, False}


@pytest.mark.parametrize(("edits", "expected"), CASES, ids=lambda case: str(case)[:60])
def test_a_single_mistake_is_told_once(edits: dict[str, Any], expected: list[str]) -> None:
    lines = problems(edited(distillation(), edits))
    assert len(lines) == len(set(lines))
    mistakes_in_both_models = len({name.replace(".teacher.", ".") for name in edits}) < len(edits)
    assert len(lines) <= 1 + mistakes_in_both_models, lines


def test_nothing_is_wrong_with_good_configurations(tmp_path: Path) -> None:
    assert problems(distillation()) == []
    assert problems(distillation(), world_size=4) == []
    assert problems(edited(distillation(), tp(2) | pp(2)), world_size=4) == []
    assert problems(edited(distillation(), tp(2) | both("sequence_parallel", True)), world_size=2) == []
    assert problems(plain()) == []
    assert problems(edited(distillation(), FULL)) == []
    assert problems(edited(distillation(), pair("decoder.layers.3.input_layernorm") | pp(2))) == []
    (tmp_path / "checkpoints" / "iter_0000007").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "checkpoints"):
        weights = {"checkpoint.pretrained_checkpoint": str(folder), "model.init": None}
        assert problems(edited(distillation(), weights)) == []
    assert problems(distillation(train__global_batch_size=None), world_size=3) == []
    (tmp_path / "a.jsonl").write_text("{}\n")
    text = {"dataset.text_path": str(tmp_path / "a.jsonl"), "dataset.mock": False, "tokenizer.tokenizer_model": "."}
    epochs = {"train.train_iters": None, "train.num_epochs": 2.0, "scheduler.lr_warmup_iters": 5}
    assert problems(edited(distillation(), text | epochs)) == []
    block = {"model.recompute_method": "block", "model.recompute_num_layers": 1}
    assert problems(edited(distillation(), pair("decoder.layers.1.mlp") | FULL | block | BY_MODELOPT)) == []
    assert problems(edited(distillation(), pair("decoder.layers.1.mlp") | FULL)) == []


def test_the_configuration_is_not_changed() -> None:
    config = edited(distillation(), {"model.hidden_size": 60, "train.global_batch_size": 7})
    before = copy.deepcopy(config)
    assert problems(config, 3) == problems(config, 3)
    assert config == before


OUTSIDE = {POSITIVE: 0, NOT_NEGATIVE: -1, FRACTION: 1.0, SEED: 2**31, OF_HEAD: 1.5, SHARE: 1.5, TWO_OR_MORE: 1}
RULES = {
    **SECTION_RULES,
    **{f"model.{name}": rule for name, rule in MODEL_RULES.items()},
    **{f"model.teacher.{name}": rule for name, rule in MODEL_RULES.items()},
    **{f"model.kd_config.{name}": rule for name, rule in KD_RULES.items()},
    **{f"model.{name}": rule for name, rule in TEACHER_RULES.items()},
}


@pytest.mark.parametrize("name", RULES)
def test_every_number_has_its_range(name: str) -> None:
    value = OUTSIDE[RULES[name]]
    lines = problems(edited(distillation(), {name: value}), world_size=2)
    assert any(line.startswith(f"{name}={value}: must be") for line in lines), lines


def test_no_number_is_without_a_range() -> None:
    numbers = {int, float, int | None, float | None}
    schema = schema_of(distillation())
    named = {".".join(path) for path, annotation in schema.leaves.items() if annotation in numbers}
    assert named <= set(RULES)


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
    lines = problems(edited(distillation(), edits), world_size)
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
    lines = problems(config)
    assert len(lines) == 1
    assert all(word in lines[0] for word in expected), lines


def test_the_interleaved_schedule_takes_whole_groups_of_micro_batches() -> None:
    config = plain(
        model__num_layers=8,
        model__pipeline_model_parallel_size=2,
        model__virtual_pipeline_model_parallel_size=2,
        train__global_batch_size=3,
    )
    (line,) = problems(config, world_size=2)
    assert "train.global_batch_size=2 or 4" in line


def test_the_vocabulary_is_checked_again_once_the_tokenizer_is_loaded() -> None:
    config = distillation()
    assert problems(config, tokenizer_vocab_size=1000) == []
    lines = problems(config, tokenizer_vocab_size=1001)
    assert len(lines) == 2
    assert "model.vocab_size=1000" in lines[0]
    assert "at least 1001" in lines[0]
    assert "model.teacher.vocab_size=1000" in lines[1]


@pytest.mark.parametrize("teacher", [900, 1001, 4000])
def test_the_models_may_have_different_numbers_of_ids(teacher: int) -> None:
    assert problems(distillation(model__teacher__vocab_size=teacher, model__kd_config__logit_kl_topk=900)) == []


def test_a_tokenizer_of_the_teacher_without_a_teacher() -> None:
    config = plain(tokenizer__tokenizer_model=".", tokenizer__teacher_tokenizer_model=".")
    (line,) = problems(config)
    assert "this run has no teacher; set tokenizer.teacher_tokenizer_model=null" in line


def test_an_unknown_vocabulary_must_be_divisible_whatever_it_is() -> None:
    config = edited(distillation(), both("vocab_size", None) | {"tokenizer.tokenizer_model": "."} | tp(8))
    assert problems(config) == []
    (line,) = problems(edited(config, {"model.make_vocab_size_divisible_by": 4}))
    assert "set model.make_vocab_size_divisible_by=8" in line


@pytest.fixture
def data(tmp_path: Path) -> str:
    for ending in (".bin", ".idx"):
        (tmp_path / f"text{ending}").touch()
    return str(tmp_path / "text")


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
        assert problems(edited(distillation(), edits)) == []


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
    lines = problems(edited(distillation(), edits))
    assert len(lines) == 1
    assert all(word in lines[0] for word in expected), lines


def test_conversations_on_disk_are_told_from_text(data: str) -> None:
    (line,) = problems(edited(distillation(), on_disk(data_path=[data], chat=True)))
    assert "dataset.chat=true" in line and "is text, made without --chat; set dataset.chat=false" in line
    Path(f"{data}.loss_mask.bin").write_bytes(b"")
    (line,) = problems(edited(distillation(), on_disk(data_path=[data])))
    assert "dataset.chat=false" in line and "is conversations; set dataset.chat=true" in line
    chat = on_disk(data_path=[0.5, data, 0.5, data], chat=True, packed_sequence=True, long_samples="drop")
    assert problems(edited(distillation(), chat)) == []
    (line,) = problems(edited(distillation(), chat | {"dataset.eod_mask_loss": True}))
    assert "dataset.eod_mask_loss=true" in line and "only what the assistant says" in line


def test_conversations_as_text_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    text = {"dataset.mock": False, "dataset.text_path": str(tmp_path / "a.txt"), "tokenizer.tokenizer_model": "."}
    (line,) = problems(edited(distillation(), text | {"dataset.chat": True}))
    assert "conversations are lines of JSON; give a .jsonl file" in line


@pytest.mark.parametrize(
    ("kind", "field"), [("huggingface", "tokenizer.tokenizer_model=null"), ("null", "tokenizer.vocab_size=null")]
)
def test_data_on_disk_needs_a_tokenizer(data: str, kind: str, field: str) -> None:
    edits = on_disk(data_path=[data]) | {"tokenizer.tokenizer_model": None, "tokenizer.tokenizer_type": kind}
    (line,) = problems(edited(distillation(), edits))
    assert field in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (line,) = problems(distillation(logger__run_dir=str(tmp_path / "run")))
    assert "logger.run_dir" in line
    assert "cannot be written" in line


def test_a_step_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "iter_0000007").mkdir(parents=True)
    assert problems(distillation(logger__run_dir=str(tmp_path), checkpoint__resume=7)) == []


def test_settings_of_the_losses_alone() -> None:
    assert kd_config_problems(ModelOptDistillConfig()) == []
    bad = ModelOptDistillConfig(kd_loss_scale=0.0, logit_kl_temperature=-1.0, logit_layers=["a", "b"])
    lines = kd_config_problems(bad)
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
    (line,) = problems(edited(distillation(), text))
    assert "is empty" in line
    (tmp_path / "a.txt").write_text("a\n")
    (line,) = problems(edited(distillation(), text | {"dataset.mock": True}))
    assert "dataset.mock=true, dataset.text_path=" in line
    assert "one place" in line
    (line,) = problems(edited(distillation(), text | {"train.num_epochs": 2.0}))
    assert "train.train_iters=1000, train.num_epochs=2.0: the length is given twice" in line
    (line,) = problems(edited(distillation(), text | {"dataset.split": "1,0,0"}))
    assert "leaves no data to validate on" in line
    null = {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 1000}
    (line,) = problems(edited(distillation(), text | null))
    assert "dataset.text_path" in line
    assert "tokenizer.tokenizer_type=huggingface" in line


def test_an_interleaved_pipeline_wants_more_than_one_micro_batch_a_rank() -> None:
    chunks = {"model.pipeline_model_parallel_size": 2, "model.virtual_pipeline_model_parallel_size": 2}
    config = edited(plain(model__num_layers=4, train__global_batch_size=None), chunks)
    (line,) = problems(config, world_size=2)
    assert line.startswith("train.global_batch_size=null: must be a multiple of 2")
