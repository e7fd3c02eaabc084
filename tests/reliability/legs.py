"""One run folder, started repeatedly through torchrun: a fault ends each start, and the next one resumes from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.runtime.exit_code import read_exit_code
from megatron_kd.training.hooks.hook import Hook
from tests.reliability.launched import Ended, through_torchrun


def run_as_user(cfg: ConfigContainer, *hooks: Hook) -> int:
    """On a rank: what a recipe script does, with plain progress."""
    from megatron_kd import main

    cfg.logger.progress = "plain"
    return main(lambda: cfg, [], hooks=hooks)


def leg(fn: Any, cfg: ConfigContainer, *args: Any, code: int, world_size: int = 2, **environment: str) -> str:
    """Call `fn(cfg, *args)` on the ranks of a torchrun; it must end with `code`, and have said so.

    Returns:
        What was printed.
    """
    run_dir = Path(cfg.logger.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = run_dir.parent / f"{run_dir.name}_call"
    folder.mkdir(exist_ok=True)
    ended: Ended = through_torchrun(world_size, fn, cfg, *args, folder=folder, **environment)
    recorded = read_exit_code(run_dir)
    assert recorded == code and (ended.code == 0) == (code == 0), (recorded, ended)
    assert "AssertionError" not in ended.output, ended.output
    return ended.output


def unbroken_end(cfg: ConfigContainer) -> str:
    """The last leg, without a fault."""
    return leg(run_as_user, cfg, code=0)
