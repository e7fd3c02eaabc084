"""`model.init=from_teacher`: the student's layers are the teacher's, at every layout and from every source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.checkpoints.reading import verify
from megatron_kd.checkpoints.tensor_parts import CheckpointReader
from megatron_kd.checks import problems
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.students.from_teacher import spaced_layers
from tests.config.base import distillation, lines_of, plain
from tests.ranks import run_ranks
from tests.tiny import STUDENT, VOCAB, tiny_config

TEACHER = replace(STUDENT, num_layers=5, add_qkv_bias=True)
KEPT = {2: [0, 4], 4: [0, 1, 3, 4]}


def save_teacher(folder: Path, provider: GPTModelProvider) -> None:
    """On a rank: random weights as a checkpoint."""
    from megatron_kd.checkpoints.weights_only import save_weights
    from megatron_kd.models.weights import local_shards
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = provider.provide(layout, padded_vocab_size=256, vocab_size=VOCAB, seed=5)
        save_weights(local_shards(model), folder, model=provider, vocab_size=VOCAB)


def save_student(folder: Path, cfg: Any) -> None:
    """On a rank: build the run of `cfg`, and write the weights that its student starts from."""
    from megatron_kd.checkpoints.weights_only import save_weights
    from megatron_kd.config.derived import derived
    from megatron_kd.models.weights import local_shards
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_state import build_run

    assert not problems(cfg, torch.distributed.get_world_size())
    with running_ranks(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=cfg.model.virtual_pipeline_model_parallel_size,
        seed=1,
    ) as layout:
        run = build_run(cfg, derived(cfg, layout.world_size, VOCAB), layout)
        shards = [shard for student in run.students for shard in local_shards(student)]
        save_weights(
            [shard for shard in shards if "_loss_modules" not in shard.key], folder, model=cfg.model, vocab_size=VOCAB
        )


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GPTModelProvider]:
    folder = tmp_path_factory.mktemp("teacher") / "weights"
    provider = replace(TEACHER, share_embeddings_and_output_weights=request.param)
    run_ranks(1, save_teacher, folder, provider)
    yield replace(provider, checkpoint=str(folder), init=None)


# Layers, ranks and what the run is; a teacher of 5 layers cannot be in two pipeline stages, so it lives elsewhere.
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "TP2": (2, 2, {"tensor_model_parallel_size": 2}),
    "PP2": (4, 2, {"pipeline_model_parallel_size": 2}),
    "PP2 with a virtual pipeline": (
        4, 2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layer_is_the_teachers(layout: str, teacher: GPTModelProvider, tmp_path: Path) -> None:
    layers, ranks, sizes = LAYOUTS[layout]
    model = replace(teacher, num_layers=layers, init="from_teacher", checkpoint=None, **sizes)
    cfg = tiny_config(tmp_path / "run", distilled=False, micro_batch_size=4)
    cfg.model = GPTDistillationProvider.from_student(model, teacher=teacher, teacher_device_strategy="gpu0")
    run_ranks(ranks, save_student, tmp_path / "student", cfg)
    student_is_made_of_the_teacher(tmp_path / "student", Path(str(teacher.checkpoint)), KEPT[layers])


def test_random_teachers_are_copied_too(tmp_path: Path) -> None:
    """As where recipes are tried without weights: the student is the same model, layer for layer."""
    cfg = tiny_config(tmp_path, student={"init": "from_teacher"}, teacher={"hidden_size": 32, "ffn_hidden_size": 64})
    run_ranks(1, save_student, tmp_path / "student", cfg)
    whole = replace(cfg, model=replace(cfg.model, num_layers=4))
    run_ranks(1, save_student, tmp_path / "teacher", whole)
    student_is_made_of_the_teacher(tmp_path / "student", tmp_path / "teacher", [0, 3])


def student_is_made_of_the_teacher(student: Path, teacher: Path, kept: list[int]) -> None:
    ours, theirs = CheckpointReader(verify(student)), CheckpointReader(verify(teacher))
    assert ours.shapes.keys() == theirs.shapes.keys()
    for key, shape in ours.shapes.items():
        mine = ours.read(key, (0,) * len(shape), shape)
        whole = theirs.read(key, (0,) * len(shape), theirs.shapes[key])
        assert torch.equal(mine, whole[kept] if ".layers." in key else whole), key
        assert mine.abs().sum() > 0 or key.endswith("bias"), key


def test_the_layers_are_evenly_spaced_from_the_first_to_the_last() -> None:
    assert spaced_layers(6, 12) == [0, 2, 4, 7, 9, 11]  # DistilBERT's
    assert spaced_layers(2, 4) == [0, 3]
    assert spaced_layers(1, 7) == [0]
    for of in range(2, 40):
        assert spaced_layers(of, of) == list(range(of))
        for count in range(2, of):
            layers = spaced_layers(count, of)
            steps = {b - a for a, b in pairwise(layers)}
            assert (layers[0], layers[-1], len(set(layers))) == (0, of - 1, count)
            assert max(steps) - min(steps) <= 1


def test_contradictions_are_told_at_once() -> None:
    cfg = distillation(model__init="from_teacher", checkpoint__pretrained_checkpoint=None)
    cfg.model = replace(cfg.model, **{**vars(cfg.model.teacher), "init": "from_teacher", "checkpoint": None})
    assert not [line for line in lines_of(cfg) if "from_teacher" in line]
    cfg.model = replace(cfg.model, num_layers=99, hidden_size=64, rotary_base=1.0, vocab_size=7)
    told = [line for line in lines_of(cfg) if line.startswith("model.init=from_teacher")]
    assert [line.split(", ")[1].split("=")[0] for line in told] == [
        "model.num_layers", "model.hidden_size", "model.ffn_hidden_size", "model.kv_channels", "model.rotary_base",
        "model.vocab_size",
    ]  # fmt: skip
    assert all("set model." in line for line in told)
    assert "`megatron-kd prune` makes narrower students" in told[1]


def test_it_needs_a_teacher_and_a_teacher_has_none() -> None:
    assert lines_of(plain(model__init="from_teacher")) == [
        "model.init=from_teacher: this run has no teacher; set checkpoint.pretrained_checkpoint or random"
    ]
    cfg = distillation(model__teacher__init="from_teacher", model__teacher__checkpoint=None)
    assert any("a teacher has no teacher to start from" in line for line in lines_of(cfg))
