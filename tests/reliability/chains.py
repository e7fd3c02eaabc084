"""Chains: one run folder, a torchrun after the other, each but the last ended by a fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from tests.faults.legs import Fault, Leg, leg
from tests.ranks import run_ranks
from tests.reliability.launched import through_torchrun
from tests.reliability.reference import made_once, same_as
from tests.reliability.row import Draw
from tests.tiny import train_and_read


def chain(
    draw: Draw,
    cfg: ConfigContainer,
    legs: Sequence[Sequence[Fault]],
    run: Callable[..., int] = leg,
    after: Callable[[int], None] = lambda _: None,
) -> list[Leg]:
    """Run `cfg` through as many torchruns of two ranks as there are legs, and one more to its end.

    Args:
        run: is called as `leg` is.
        after: called with the number of a leg that a fault has ended.

    Returns:
        What is known of each, the last included.

    Raises:
        AssertionError: a fault did not hit, the run did not come to its end, has refused a checkpoint, or has other
            losses or weights than the same run without faults.
    """
    run_dir, found = Path(cfg.logger.run_dir), []
    for number, faults in enumerate([*legs, []]):
        folder = draw.folder / f"leg_{number}"
        folder.mkdir()
        ended = through_torchrun(2, run, cfg, faults, folder, folder=folder)
        found.append(Leg.read(folder))
        assert len(found[-1].hits) == len(faults), f"{faults} did not hit: {ended.output}"
        assert (ended.code == 0) == (not faults), ended.output
        assert not found[-1].notes, f"a checkpoint was refused: {found[-1].notes}"
        if number < len(legs):
            after(number)
    whole, _ = made_once(draw, "unbroken_chain", lambda unbroken: _run(cfg, unbroken))
    same_as(whole, run_dir, cfg.train.train_iters)
    return found


def _run(cfg: ConfigContainer, folder: Path) -> int:
    run_dir = cfg.logger.run_dir
    cfg.logger.run_dir = str(folder)
    try:
        return len(run_ranks(2, train_and_read, cfg)[0])
    finally:
        cfg.logger.run_dir = run_dir
