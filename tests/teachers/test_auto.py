"""`auto` takes what fits, tells why, and refuses what cannot fit before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from tests.ranks import run_ranks
from tests.tiny import tiny_config

LARGE = {"hidden_size": 256, "ffn_hidden_size": 1024, "num_layers": 8}


def chosen(cfg: ConfigContainer) -> dict[str, Any]:
    """On a rank: what is chosen, or why nothing is."""
    from megatron_kd.config.derived import derived
    from megatron_kd.errors import InputError
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.teachers.auto import choose_strategy

    with running_ranks(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
        seed=1,
    ) as layout:
        try:
            choice = choose_strategy(cfg, cfg.model, derived(cfg, layout.world_size), layout)
        except InputError as error:
            return {"error": str(error)}
        return {"strategy": choice.strategy.name, "why": choice.why, "table": choice.table}


def config(folder: Path, strategy: str, memory_gb: float | None, **student: Any) -> ConfigContainer:
    cfg = tiny_config(folder, micro_batch_size=1, teacher=LARGE, **student)
    cfg.model.teacher_device_strategy = strategy  # type: ignore[assignment]
    cfg.dist.device_memory_gb = memory_gb
    return cfg


def test_with_room_for_copies_the_teacher_is_colocated_and_without_it_is_divided(tmp_path: Path) -> None:
    roomy = run_ranks(2, chosen, config(tmp_path, "auto", 10.0))
    assert [rank["strategy"] for rank in roomy] == ["colocated"] * 2
    # On a CPU, one copy in the memory that both ranks share is as good as a divided one, and needs no messages.
    assert run_ranks(2, chosen, config(tmp_path, "auto", 0.027))[0]["strategy"] == "cpu"
    alone = config(tmp_path, "auto", 0.027)
    alone.model.share_teacher = False
    cramped = run_ranks(2, chosen, alone)
    assert [rank["strategy"] for rank in cramped] == ["balanced"] * 2
    why = cramped[0]["why"]
    assert why.startswith("auto takes balanced: the fastest of those that fit") and "\n" not in why
    assert "colocated, gpu0, cpu would not fit; about 0.01" in why and "of 0.027 GB per rank" in why
    assert cramped[0]["table"].splitlines()[0].split() == ["colocated", "balanced", "gpu0", "cpu"]


def test_unequal_layouts_are_never_colocated(tmp_path: Path) -> None:
    cfg = config(tmp_path, "auto", None, tp=2)
    cfg.model.teacher.tensor_model_parallel_size = 1
    assert run_ranks(2, chosen, cfg)[0]["strategy"] != "colocated"


@pytest.mark.parametrize("strategy", ["colocated", "gpu0"])
def test_what_cannot_fit_is_refused_with_what_would(strategy: str, tmp_path: Path) -> None:
    for rank in run_ranks(2, chosen, config(tmp_path, strategy, 0.027)):
        assert f"model.teacher_device_strategy={strategy}: weights, gradients and optimizer take" in rank["error"]
        assert "set model.teacher_device_strategy=balanced" in rank["error"]


def test_what_fits_nowhere_is_refused(tmp_path: Path) -> None:
    (rank,) = run_ranks(1, chosen, config(tmp_path, "auto", 0.005))
    assert "model.teacher_device_strategy=auto" in rank["error"] and "use more ranks" in rank["error"]
