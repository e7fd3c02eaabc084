"""A teacher kept as int8 is one teacher, wherever it lives."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_kd.config.container import ConfigContainer
from megatron_kd.models.int8 import Int8Linear
from megatron_kd.teachers.in_pipeline import ColocatedTeacher
from megatron_kd.teachers.placed import PlacedTeacher
from tests.ranks import run_ranks
from tests.teachers.built import built_teacher, student_layout
from tests.teachers.test_strategies import COMPARED, placed_config
from tests.teachers.test_weights import PLACES, train_and_look
from tests.tiny import TEACHER, VOCAB

pytestmark = pytest.mark.slow  # whole runs on several ranks

ONE_RANK = {"strategy": "colocated"}


def int8_config(folder: Path, student: dict[str, Any], teacher: dict[str, Any], **more: Any) -> ConfigContainer:
    cfg = placed_config(folder, student, teacher, **more)
    cfg.model.teacher_quantization = "int8"
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("colocated")


@cache
def losses_on_one_rank(folder: Path, tied: bool) -> list[dict[str, Any]]:
    cfg = int8_config(folder / str(tied), {}, ONE_RANK, iters=2)
    cfg.model.teacher.share_embeddings_and_output_weights = tied
    return run_ranks(1, train_and_look, cfg)[0]["records"]


@pytest.mark.parametrize(
    ("place", "tied"), [*((place, False) for place in PLACES), ("colocated", True), ("colocated, PP2", True)]
)
def test_the_losses_are_those_of_one_rank(place: str, tied: bool, folder: Path, tmp_path: Path) -> None:
    by_stages = (2, {"pp": 2, "micro_batch_size": 4}, {"strategy": "colocated", "pp": 2})
    world_size, student, teacher = PLACES.get(place, by_stages)
    cfg = int8_config(tmp_path, student, teacher, iters=2)
    cfg.model.teacher.share_embeddings_and_output_weights = tied
    ranks = run_ranks(world_size, train_and_look, cfg)
    for record, reference in zip(ranks[0]["records"], losses_on_one_rank(folder, tied), strict=True):
        for name in (name for name in COMPARED if name in reference):
            assert record[name] == pytest.approx(reference[name], rel=1e-5), (record["step"], name)
    for seen in ranks:
        assert seen["before"] == seen["after"]
        assert (seen["optimised"], seen["needing grad"]) == (0, 0)


def weights(cfg: ConfigContainer) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], int]:
    """On a rank: the teacher's int8 values and scales by global name, and the bytes of its transformer layers."""
    teacher = built_teacher(cfg, student_layout(cfg))
    assert isinstance(teacher, PlacedTeacher) and teacher.body is not None
    model = teacher.body.model
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            layer = model.decoder.layers[int(name.split(".")[2])].layer_number - 1
            found[re.sub(r"\d+", str(layer), name, count=1)] = (module.values.data, module.scales.data)
    return found, sum(p.nbytes for p in model.decoder.layers.parameters())


def joined(name: str, shards: list[torch.Tensor]) -> torch.Tensor:
    """The whole of a linear layer's int8 weight or scales, out of tensor-parallel shards."""
    if name.endswith(("linear_proj", "linear_fc2")):
        return torch.cat(shards, dim=1)
    if name.endswith("linear_qkv"):
        return torch.cat(shards)
    halves = [shard.chunk(2) for shard in shards]  # gate and up projection
    return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])


def test_shards_put_together_are_the_undivided_teacher_bitwise(tmp_path: Path) -> None:
    ((whole, _),) = run_ranks(1, weights, int8_config(tmp_path, {}, {"strategy": "gpu0"}))
    spread = {"strategy": "balanced", "tp": 2, "pp": 2}
    ranks = run_ranks(4, weights, int8_config(tmp_path, {"micro_batch_size": 2}, spread))
    shards = [{**ranks[shard][0], **ranks[2 + shard][0]} for shard in (0, 1)]
    assert set(whole) == set(shards[0]) == set(shards[1]) and len(whole) == 4 * TEACHER.num_layers
    for name, (values, scales) in whole.items():
        assert torch.equal(joined(name, [shard[name][0] for shard in shards]), values), name
        if name.endswith(("linear_proj", "linear_fc2")):
            assert all(torch.equal(shard[name][1], scales) for shard in shards), name
        else:
            assert torch.equal(joined(name, [shard[name][1] for shard in shards]), scales), name


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1 / 4), ("bfloat16", 1 / 2)])
def test_the_layers_take_a_quarter_or_half_of_the_bytes(dtype: str, share: float, tmp_path: Path) -> None:
    small, full = (placed_config(tmp_path, {}, {"strategy": "gpu0"}) for _ in range(2))
    small.model.teacher_quantization = "int8"
    small.model.teacher_dtype = full.model.teacher_dtype = dtype
    (_, bytes_small), (_, bytes_full) = (run_ranks(1, weights, cfg)[0] for cfg in (small, full))
    assert share < bytes_small / bytes_full < 1.15 * share, "norms and scales are the rest"


def divergence_from_full(cfg: ConfigContainer) -> tuple[float, float]:
    """On a rank: KL(full || int8) and KL(full || uniform) of the teacher, a token."""
    layout = student_layout(cfg)
    logits = []
    for cfg.model.teacher_quantization in (None, "int8"):
        teacher = built_teacher(cfg, layout)
        assert isinstance(teacher, ColocatedTeacher)
        tokens = torch.randint(VOCAB, (8, 16), generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            logits.append(teacher.model(tokens, torch.arange(16).expand(8, 16), None)[..., :VOCAB])
    full, small = (F.log_softmax(logit.double(), dim=-1).flatten(0, 1) for logit in logits)
    uniform = torch.full_like(full, -torch.log(torch.tensor(VOCAB).double()).item())
    return tuple(F.kl_div(other, full, log_target=True, reduction="batchmean").item() for other in (small, uniform))


def test_it_says_nearly_what_the_full_teacher_says(tmp_path: Path) -> None:
    ((divergence, information),) = run_ranks(1, divergence_from_full, placed_config(tmp_path, {}, ONE_RANK))
    assert 0 < divergence < 0.01 * information, (divergence, information)
