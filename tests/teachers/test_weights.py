"""A placed teacher's weights: read from a checkpoint of any layout, unchanged, in one place only."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.distillation.report import REPORTED
from tests.hooks import On
from tests.ranks import RankFailed, run_ranks
from tests.teachers.test_strategies import COMPARED, placed_config
from tests.tiny import TEACHER, tiny_config, train_and_read

pytestmark = pytest.mark.slow  # whole runs on several ranks

PLACES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "colocated": (2, {"tp": 2}, {"strategy": "colocated", "tp": 2}),
    "balanced": (2, {"micro_batch_size": 4}, {"strategy": "balanced", "pp": 2}),
    "balanced, TP2": (2, {"pp": 2, "micro_batch_size": 4}, {"strategy": "balanced", "tp": 2}),
    "gpu0": (2, {"tp": 2}, {"strategy": "gpu0", "rank": 1}),
    "cpu": (2, {"micro_batch_size": 4}, {"strategy": "cpu"}),
}


def digests(tensors: Any) -> dict[str, str]:
    def digest(tensor: torch.Tensor) -> str:
        return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    return {name: digest(tensor) for name, tensor in tensors}


def train_and_look(cfg: ConfigContainer) -> dict[str, Any]:
    """On a rank: a whole run; what of the teacher is where, before and after."""
    before: dict[str, str] = {}
    hook = On(before_run=lambda run: before.update(digests(run.teacher.tensors())))
    records = train_and_read(cfg, hook)
    run = hook.run
    teacher = {id(tensor) for _, tensor in run.teacher.tensors()}
    return {
        "records": records,
        "before": before,
        "after": digests(run.teacher.tensors()),
        "names": sorted(before),
        "shown": [name for chunk in run.chunks for name, p in chunk.named_parameters() if id(p) in teacher],
        "optimised": sum(id(p) in teacher for group in run.optimizer.param_groups for p in group["params"]),
        "needing grad": sum(tensor.requires_grad for _, tensor in run.teacher.tensors()),
    }


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trained_teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A checkpoint of a teacher, saved at TP2."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = tiny_config(folder, iters=2, tp=2, save=True, save_interval=2, distilled=False)
    cfg.model = replace(TEACHER, tensor_model_parallel_size=2, share_embeddings_and_output_weights=request.param)
    run_ranks(2, train_and_read, cfg)
    return folder, request.param


def with_checkpoint(cfg: ConfigContainer, trained: tuple[Path, bool]) -> ConfigContainer:
    folder, tied = trained
    cfg.model.teacher = replace(
        cfg.model.teacher, init=None, checkpoint=str(folder), share_embeddings_and_output_weights=tied
    )
    return cfg


@pytest.mark.parametrize("place", [name for name in PLACES if name != "colocated"])
def test_a_checkpoint_of_any_layout_loads_anywhere(
    place: str, trained_teacher: tuple[Path, bool], tmp_path: Path
) -> None:
    reference = with_checkpoint(tiny_config(tmp_path / "reference"), trained_teacher)
    expected = run_ranks(1, train_and_read, reference)[0]
    world_size, student, teacher = PLACES[place]
    cfg = with_checkpoint(placed_config(tmp_path / "placed", student, teacher), trained_teacher)
    ranks = run_ranks(world_size, train_and_look, cfg)
    for record, other in zip(ranks[0]["records"], expected, strict=True):
        for name in (name for name in COMPARED if name in other):
            assert record[name] == pytest.approx(other[name], rel=1e-5), (record["step"], name)
    for seen in ranks:
        assert seen["before"] == seen["after"]
        assert (seen["shown"], seen["optimised"], seen["needing grad"]) == ([], 0, 0)


def test_a_teacher_of_another_architecture_is_refused_on_every_rank(
    trained_teacher: tuple[Path, bool], tmp_path: Path
) -> None:
    cfg = with_checkpoint(placed_config(tmp_path, *PLACES["gpu0"][1:]), trained_teacher)
    cfg.model.teacher.ffn_hidden_size = 64
    with pytest.raises(RankFailed) as caught:
        run_ranks(2, train_and_read, cfg)
    assert str(caught.value).count("holds another model: decoder.layers.mlp.linear_fc1.weight has shape") == 2


def test_gpu0_keeps_the_body_on_one_rank_and_the_head_in_shards(tmp_path: Path) -> None:
    seen = run_ranks(2, train_and_look, placed_config(tmp_path, *PLACES["gpu0"][1:]))
    assert seen[0]["names"] == ["output_layer.weight"]
    assert "decoder.final_layernorm.weight" in seen[1]["names"]
    heads = [rank["before"]["output_layer.weight"] for rank in seen]
    assert heads[0] != heads[1]


def shared_addresses(cfg: ConfigContainer) -> set[str]:
    """On a rank: the files that the teacher's tensors are mapped from, as the kernel knows them."""
    hook = On()
    train_and_read(cfg, hook)
    addresses = [p.data_ptr() for p in hook.run.teacher.body.model.parameters() if not p.is_meta]
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if any(start <= address < end for address in addresses):
            found.add(" ".join(line.split()[3:]))  # device, inode and name
    return found


def test_the_ranks_of_a_machine_share_one_copy_in_host_memory(tmp_path: Path) -> None:
    one, other = run_ranks(2, shared_addresses, placed_config(tmp_path / "a", *PLACES["cpu"][1:]))
    assert one == other
    (mapped,) = one
    assert "megatron_kd-teacher" in mapped and mapped.endswith("(deleted)"), mapped
    alone = placed_config(tmp_path / "b", {"micro_batch_size": 4}, {"strategy": "cpu", "share": False})
    assert not any("megatron_kd" in name for rank in run_ranks(2, shared_addresses, alone) for name in rank)
    assert not list(Path("/dev/shm").glob("megatron_kd-teacher*"))


def poisoned(cfg: ConfigContainer, rank: int) -> list[float]:
    """On a rank: `step_losses` of a run whose teacher is changed on `rank` alone before the first step."""

    def poison(run: Any) -> None:
        if run.layout.rank == rank:
            with torch.no_grad():
                for _, tensor in run.teacher.tensors():
                    tensor += 0.5

    return step_losses(cfg, On(before_run=poison))


def step_losses(cfg: ConfigContainer, *hooks: On) -> list[float]:
    """On a rank: the first step's losses of this rank's own micro-batches."""
    seen: list[float] = []

    def keep(run: Any) -> None:
        head = run.students[-1]
        losses = head.head_function

        def overheard(*args: Any) -> Any:
            result = losses(*args)
            seen.append(float(result[2][REPORTED.index("logits_loss")]))
            return result

        head.head_function = overheard

    train_and_read(cfg, *hooks, On(before_run=keep))
    return seen


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_poisoned_teacher_on_its_rank_changes_every_ranks_loss(world_size: int, tmp_path: Path) -> None:
    """So no rank has a teacher of its own."""
    teacher = {"strategy": "gpu0", "rank": world_size - 1}

    def config(name: str) -> ConfigContainer:
        cfg = placed_config(tmp_path / name, {"micro_batch_size": 1}, teacher, iters=1)
        cfg.model.kd_config.intermediate_layer_pairs = []
        cfg.validation.eval_iters = 0  # it comes after the update, which every rank's gradient is in
        return cfg

    clean = run_ranks(world_size, step_losses, config("clean"))
    dirty = run_ranks(world_size, poisoned, config("dirty"), world_size - 1)
    for rank in range(world_size):
        assert len(clean[rank]) == len(dirty[rank]) > 0
        assert all(a != b for a, b in zip(clean[rank], dirty[rank], strict=True)), rank
    elsewhere = run_ranks(world_size, poisoned, config("elsewhere"), 0)
    assert elsewhere[1:] == clean[1:], "rank 0 holds nothing but its copy of the head"
    assert elsewhere[0] != clean[0]


def test_student_checkpoints_are_interchangeable(tmp_path: Path) -> None:
    """Saved beside a distant teacher, continued beside a co-located one, and the other way round."""
    unbroken = run_ranks(1, train_and_read, tiny_config(tmp_path / "unbroken", iters=6))[0]
    world_size, student, teacher = PLACES["balanced, TP2"]
    placed = {"save": True, "save_interval": 3}
    for name, first_is_placed in (("to colocated", True), ("to balanced", False)):
        for index, iters in enumerate((3, 6)):
            if (index == 0) == first_is_placed:
                cfg = placed_config(tmp_path / name, student, teacher, iters=iters, **placed)
                records = run_ranks(world_size, train_and_read, cfg)[0]
            else:
                records = run_ranks(1, train_and_read, tiny_config(tmp_path / name, iters=iters, **placed))[0]
        losses = {r["step"]: r["loss"] for r in records if r["split"] == "train"}
        expected = {r["step"]: r["loss"] for r in unbroken if r["split"] == "train"}
        assert losses == pytest.approx(expected, rel=1e-5)
