"""An error of one rank is everyone's."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks


def outcome(finding: tuple[int, ...]) -> str:
    """On a rank: what it learns when the ranks in `finding` find something wrong."""
    import torch.distributed as dist

    from megatron_kd.errors import InputError
    from megatron_kd.runtime.together import raised_together

    try:
        with raised_together():
            if dist.get_rank() in finding:
                raise InputError(f"found by {dist.get_rank()}")
    except InputError as error:
        return str(error)
    return "fine"


@pytest.mark.parametrize(("finding", "told"), [((), "fine"), ((1,), "found by 1"), ((0, 1), "found by 0")])
def test_every_rank_raises_what_the_lowest_found(finding: tuple[int, ...], told: str) -> None:
    assert run_ranks(2, outcome, finding) == [told, told]
