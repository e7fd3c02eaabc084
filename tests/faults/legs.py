"""Legs of a run: from where the one before left it to a fault, or to the end; on forked ranks or through torchrun."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.training.hooks.hook import Hook, Loop
from tests.faults.instants import Instant, at_instant, sent
from tests.faults.runs import LAST_WORDS_S
from tests.ranks import RankFailed, run_ranks


@dataclass(frozen=True)
class Fault:
    """A signal that a rank sends itself at an instant, after a pause in seconds."""

    rank: int
    instant: Instant
    signal: int = signal.SIGKILL
    pause_s: float = 0


@dataclass(frozen=True)
class Leg:
    """The outcome of one leg.

    Attributes:
        hits: where its faults hit.
        step: the one it resumed from; -1 if it did not get that far.
        notes: its messages about refused checkpoints.
    """

    hits: tuple[str, ...]
    step: int
    notes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Leg:
        """Of the folder that `leg` was given."""
        hits = tuple((folder / "hits").read_text().splitlines()) if (folder / "hits").exists() else ()
        went_on = json.loads((folder / "resumed.json").read_text()) if (folder / "resumed.json").exists() else [-1, []]
        return cls(hits, went_on[0], tuple(went_on[1]))


def leg(cfg: ConfigContainer, faults: Sequence[Fault], folder: Path, *hooks: Hook) -> int:
    """On a rank: run `cfg` as a recipe does, with this rank's faults; `folder` takes what `Leg.read` reads."""
    from megatron_kd import main

    rank = int(os.environ["RANK"])
    with contextlib.ExitStack() as held:
        for fault in faults:
            if fault.rank == rank:
                do = sent(fault.signal, folder / "hits", fault.pause_s)
                held.enter_context(at_instant(fault.instant, Path(cfg.logger.run_dir), do))
        return main(lambda: cfg, [], hooks=[_NotesResume(folder), *hooks])


def told_leg(cfg: ConfigContainer, faults: Sequence[Fault], folder: Path) -> tuple[int, str]:
    """`leg`, with what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = leg(cfg, faults, folder)
    return code, told.getvalue()


def killed_leg(cfg: ConfigContainer, fault: Fault, folder: Path, world_size: int = 2) -> Leg:
    """Run `cfg` on forked ranks until `fault`, a kill, hits.

    Raises:
        AssertionError: it did not hit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run_ranks(world_size, leg, cfg, [fault], folder, last_words=LAST_WORDS_S)
    except RankFailed as failure:
        assert f"--- rank {fault.rank}\ndied with exit code -9" in str(failure), failure
    else:
        raise AssertionError(f"{fault} did not hit")
    return Leg.read(folder)


def last_leg(cfg: ConfigContainer, folder: Path, world_size: int = 2) -> Leg:
    """Run `cfg` on forked ranks to its end, from where an earlier leg has left it.

    Raises:
        AssertionError: it does not come to its end, or has refused a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ended = run_ranks(world_size, told_leg, cfg, [], folder)
    assert [code for code, _ in ended] == [0] * world_size, ended
    found = Leg.read(folder)
    assert not found.notes, f"a checkpoint was refused: {found.notes}"
    return found


class _NotesResume(Hook):
    """Writes down the step that the run resumes from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before_run(self, loop: Loop) -> None:
        if loop.run.layout.rank == 0:
            (self._folder / "resumed.json").write_text(json.dumps([loop.run.step, loop.resumption.notes]))
