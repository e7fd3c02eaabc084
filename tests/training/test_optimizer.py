"""Settings of the optimizer beyond megatron-core's."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_kd.config.container import ConfigContainer
from tests.hooks import On
from tests.ranks import run_ranks
from tests.tiny import tiny_config


def groups_and_moments(cfg: ConfigContainer) -> tuple[list[bool], int]:
    """On a rank: after a run of `cfg`, whether each group is fused, and how many parameters have moments."""
    from megatron_kd.training.train import train

    hook = On()
    train(cfg, [hook])
    optimizer = hook.run.optimizer
    return [bool(group["fused"]) for group in optimizer.param_groups], len(list(optimizer.state))


def test_adam_is_fused_on_the_cpu_also_after_resuming(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    cfg = tiny_config(tmp_path, iters=1, save=True)
    (first,) = run_ranks(1, groups_and_moments, cfg)
    cfg.train.train_iters = 2
    (resumed,) = run_ranks(1, groups_and_moments, cfg)
    assert all(first[0]) and first == resumed
