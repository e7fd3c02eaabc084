"""How far it is from a recipe to the student's forward."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import megatron_kd
from megatron_kd.config.container import ConfigContainer
from tests.hooks import On
from tests.ranks import run_ranks
from tests.tiny import tiny_config

PACKAGE = Path(megatron_kd.__file__).parent


def own_frames() -> list[str]:
    """The calls of this package that are under way, the outermost first."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            found.insert(0, f"{file.relative_to(PACKAGE)}: {frame.f_code.co_name}")
        frame = frame.f_back
    return found


def frames_of_forwards(cfg: ConfigContainer) -> set[tuple[str, ...]]:
    """On a rank: run `cfg` as a recipe does; the frames of ours when the layers of its student run in training."""
    from megatron_kd import main

    seen: set[tuple[str, ...]] = set()

    def look(module: Any, inputs: Any) -> None:
        if module.training:
            seen.add(tuple(own_frames()))

    def watch(run: Any) -> None:
        for student in run.students:
            student.decoder.register_forward_pre_hook(look)

    assert main(lambda: cfg, [], hooks=[On(before_run=watch)]) == 0
    return seen


@pytest.mark.parametrize("layout", [{}, {"tp": 2}, {"pp": 2, "micro_batch_size": 4}], ids=["one rank", "TP2", "PP2"])
def test_four_frames_lead_from_a_recipe_to_the_student(layout: dict[str, Any], tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, iters=2, **layout)
    for seen in run_ranks(2 if layout else 1, frames_of_forwards, cfg):
        assert seen == {
            (
                "entry.py: main",
                "training/train.py: train",
                "training/step.py: train_step",
                "training/forward_pass.py: _forward_step",
            )
        }
