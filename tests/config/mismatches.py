"""Students and teachers that do not fit each other, or not the checkpoints they are to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from megatron_kd.config.run_config import save_run_config
from tests.config.base import distillation, edited
from tests.config.illegal import COLOCATED, both, pair, pp, tp

# The two models of `distillation()`, for recipes of other models.
MODELS = {
    **both("hidden_size", 64), **both("num_attention_heads", 8), **both("num_query_groups", None),
    **both("ffn_hidden_size", None), **both("kv_channels", None), **both("seq_length", 32), **both("vocab_size", 1000),
    "model.num_layers": 4, "model.teacher.num_layers": 8,
}  # fmt: skip
NORM = "decoder.layers.{}.input_layernorm"
Mismatch = tuple[dict[str, Any], list[str]]  # edits of `MODELS`, and what one line says: both sides, and a cure


def mismatches(draw: Random, folder: Path) -> list[Mismatch]:
    """Some of each kind, with numbers of `draw`; `folder` takes checkpoints."""
    return [*layouts(draw), *pairs(draw), *copied(draw), *vocabularies(draw), *checkpoints(draw, folder)]


def layouts(draw: Random) -> list[Mismatch]:
    """Layouts and batches that one pipeline or a number of heads does not allow."""
    odd, rows = draw.choice([3, 5, 6, 7]), draw.choice([3, 4, 8])
    size, name = draw.choice([2, 4]), draw.choice(["tensor", "pipeline"])
    layout, length = f"{name}_model_parallel_size", draw.randrange(1, 32)
    return [
        ({"model.teacher.seq_length": length},
         ["model.seq_length=32", f"model.teacher.seq_length={length}", "set model.teacher.seq_length=32"]),
        ({f"model.{layout}": size} | COLOCATED,
         [f"model.{layout}={size}", f"model.teacher.{layout}=1", "shares the student's layout; set model.teacher"]),
        ({f"model.teacher.{layout}": size} | COLOCATED,
         [f"model.{layout}=1", f"model.teacher.{layout}={size}", "shares the student's layout; set model.teacher"]),
        ({"model.teacher.sequence_parallel": True, **tp(2)} | COLOCATED,
         ["model.sequence_parallel=false", "model.teacher.sequence_parallel=true", "set model.teacher"]),
        (tp(odd), ["model.num_attention_heads=8", f"model.tensor_model_parallel_size={odd}", "divisor of heads"]),
        (tp(odd), ["model.teacher.num_attention_heads=8", f"model.teacher.tensor_model_parallel_size={odd}"]),
        ({"model.teacher.num_layers": odd, **pp(4)},
         [f"model.teacher.num_layers={odd}", "model.teacher.pipeline_model_parallel_size=4", "divisor of the layers"]),
        ({"model.teacher_dtype": "bfloat16", "mixed_precision.precision": "fp32", **pp(2)} | COLOCATED,
         ["model.teacher_dtype=bfloat16", "precision=fp32", "both models travel", "set model.teacher_dtype=null"]),
        ({"model.teacher_micro_batch_size": rows, "train.micro_batch_size": 2} | COLOCATED,
         [f"model.teacher_micro_batch_size={rows}", "train.micro_batch_size=2", "teacher reads the student's"]),
    ]  # fmt: skip


def pairs(draw: Random) -> list[Mismatch]:
    """Pairs of layers, one of which does not exist, does not output a hidden state, or is on another stage."""
    student, teacher = NORM.format(draw.randrange(4, 99)), NORM.format(draw.randrange(8, 99))
    here, there = NORM.format(draw.randrange(4)), NORM.format(draw.randrange(8))
    first, last = NORM.format(draw.randrange(2)), NORM.format(draw.randrange(4, 8))
    split = f"decoder.layers.{draw.randrange(4)}." + draw.choice(["mlp.linear_fc1", "self_attention.linear_qkv"])
    return [
        (pair(student, there), [f"[{student}, {there}]", f"{student} does not exist", "model has layers 0 to 3"]),
        (pair(here, teacher), [f"[{here}, {teacher}]", f"{teacher} does not exist", "model.teacher has layers 0 to 7"]),
        (pair(split, there) | {"model.teacher.hidden_size": 128},
         [f"[{split}, {there}]", f"the output of {split}", "is not model.hidden_size wide", "pair a norm"]),
        (pair(first, last) | pp(2) | COLOCATED,
         [f"[{first}, {last}]", "the student's layer is on pipeline stage 0 and the teacher's on 1", "one stage"]),
    ]  # fmt: skip


def copied(draw: Random) -> list[Mismatch]:
    """Students that are to start from the layers of another architecture."""
    copy = {"model.init": "from_teacher"}
    values: dict[str, tuple[Any, Any]] = {
        "hidden_size": (64, 128), "num_attention_heads": (8, 16), "ffn_hidden_size": (256, 384),
        "normalization": ("RMSNorm", "LayerNorm"), "rotary_base": (10000.0, 5e5), "vocab_size": (1000, 1200),
    }  # fmt: skip
    found: list[Mismatch] = [
        ({**copy, "model.teacher.num_layers": 3}, ["model.num_layers=4", "model.teacher.num_layers=3", "at most 3"])
    ]
    for name in draw.sample(sorted(values), 4):
        ours, theirs = values[name]
        edits = copy | {f"model.{name}": ours, f"model.teacher.{name}": theirs}
        found.append((edits, [f"model.{name}={ours}", f"model.teacher.{name}={theirs}", f"set model.{name}={theirs}"]))
    return found


def vocabularies(draw: Random) -> list[Mismatch]:
    """Numbers of token ids that do not fit each other or the tokenizer."""
    few, null = draw.randrange(2, 1000), {"tokenizer.tokenizer_type": "null", "tokenizer.vocab_size": 1000}
    return [
        (null | {"model.teacher.vocab_size": few},
         [f"model.teacher.vocab_size={few}", "has 1000 ids", "at least 1000"]),
        ({"model.teacher.vocab_size": few, "model.kd_config.logit_kl_topk": few + 1},
         [f"model.kd_config.logit_kl_topk={few + 1}", f"student and teacher share {few} ids", "at most"]),
        ({"tokenizer.tokenizer_model": None, "tokenizer.teacher_tokenizer_model": "."},
         ["tokenizer.teacher_tokenizer_model='.'", "tokenizer.tokenizer_model=null", "set tokenizer.tokenizer_model"]),
    ]  # fmt: skip


def checkpoints(draw: Random, folder: Path) -> list[Mismatch]:
    """Checkpoints of models of other sizes, for the teacher and the student."""
    sizes: dict[str, tuple[Any, Any]] = {
        "num_layers": (None, 6), "hidden_size": (64, 128), "ffn_hidden_size": (256, 192), "num_query_groups": (8, 4),
        "kv_channels": (8, 16), "add_qkv_bias": (False, True), "num_attention_heads": (8, 4),
    }  # fmt: skip
    found: list[Mismatch] = []
    for number, name in enumerate(draw.sample(sorted(sizes), 4)):
        model, field = [("model.teacher", "model.teacher.checkpoint"), ("model", "checkpoint.pretrained_checkpoint")][
            number % 2
        ]
        ours, saved = sizes[name]
        ours = ours if ours is not None else MODELS[f"{model}.num_layers"]
        checkpoint = saved_model(folder / f"of other {name}", {**MODELS, f"model.{name}": saved})
        words = [
            f"{model}.{name}={_yaml(ours)}, {field}=",
            f"the checkpoint's model has {_yaml(saved)}",
            f"set {model}",
        ]
        found.append(({f"{model}.{name}": ours, field: str(checkpoint), f"{model}.init": None}, words))
    return found


def saved_model(folder: Path, edits: Mapping[str, Any]) -> Path:
    """A run folder whose checkpoint describes its model; the description is checked before any tensor is read."""
    checkpoint = folder / "checkpoints/iter_0000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "metadata.json").write_text("{}")
    save_run_config(edited(distillation(), dict(edits)), checkpoint / "run_config.yaml")
    return folder


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
