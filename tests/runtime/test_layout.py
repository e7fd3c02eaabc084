"""Which rank is where in a parallel layout."""

from __future__ import annotations

from typing import Any

import torch

from tests.ranks import run_ranks


def place(tp: int, pp: int) -> dict[str, Any]:
    """On a rank: its coordinates, and which ranks its groups reach."""
    from megatron_kd.runtime.layout import create_layout, destroy_layout

    layout = create_layout(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, device=torch.device("cpu"))
    groups = {"tp": layout.tp.group, "pp": layout.pp.group, "dp": layout.dp.group}
    try:
        return {
            "coordinates": (layout.tp.rank, layout.pp.rank, layout.dp.rank),
            "sizes": (layout.tp.size, layout.pp.size, layout.dp.size),
            "stage": (layout.is_first_stage, layout.is_last_stage),
            "world": (layout.rank, layout.world_size),
            **{axis: torch.distributed.get_process_group_ranks(group) for axis, group in groups.items()},
            "sum": {axis: summed(group, layout.rank) for axis, group in groups.items()},
        }
    finally:
        destroy_layout()


def summed(group: Any, value: int) -> int:
    total = torch.tensor(value)
    torch.distributed.all_reduce(total, group=group)
    return int(total)


def test_tensor_ranks_are_neighbours_and_pipeline_stages_far_apart() -> None:
    ranks = run_ranks(4, place, 2, 2)
    assert [rank["coordinates"] for rank in ranks] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
    assert [rank["tp"] for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["pp"] for rank in ranks] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [rank["stage"] for rank in ranks] == [(True, False), (True, False), (False, True), (False, True)]
    assert [rank["sum"] for rank in ranks] == [
        {"tp": sum(rank["tp"]), "pp": sum(rank["pp"]), "dp": index} for index, rank in enumerate(ranks)
    ]


def test_what_is_left_is_data_parallel() -> None:
    ranks = run_ranks(4, place, 2, 1)
    assert {rank["sizes"] for rank in ranks} == {(2, 1, 2)}
    assert [rank["dp"] for rank in ranks] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert all(rank["stage"] == (True, True) for rank in ranks)
    assert [rank["world"] for rank in ranks] == [(index, 4) for index in range(4)]
