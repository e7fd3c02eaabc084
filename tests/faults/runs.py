"""Runs that are killed while they save, and what comes after them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.training.hooks.hook import Hook, Loop
from tests.faults.writes import Operation, at, kill, operations
from tests.ranks import RankFailed, run_ranks
from tests.tiny import train_and_read

LAST_WORDS_S = 0.3  # for the ranks that are left to do to files what they do then; who is missed takes them longer


@dataclass(frozen=True)
class Kill:
    """Where a rank is killed: before the `number`-th operation of name `name` on a path that has `part` in it.

    Operations of all names count where `name` is None.
    """

    rank: int
    name: str | None
    part: str
    number: int = 0

    def hits(self, operation: Operation) -> bool:
        """Whether the operation counts."""
        return self.name in (None, operation.name) and self.part in str(operation.path)


@dataclass
class Resumed:
    """The report of a run that resumed another.

    Attributes:
        step: the one it resumed from.
        notes: its messages about refused checkpoints.
        records: of its metrics.jsonl.
    """

    step: int = -1
    notes: tuple[str, ...] = ()
    records: list[dict[str, Any]] = field(default_factory=list)


def train_and_die(cfg: ConfigContainer, killed: Kill) -> None:
    """On a rank: run `cfg`; the rank of `killed` dies where that says."""
    import torch.distributed as dist

    from megatron_kd.training.train import train

    if dist.get_rank() == killed.rank:
        with operations(Path(cfg.logger.run_dir), at(killed.number, kill, killed.hits)):
            train(cfg)
    else:
        train(cfg)


def killed_run(world_size: int, cfg: ConfigContainer, killed: Kill) -> None:
    """Run `cfg` until `killed` hits, and let the other ranks go.

    Raises:
        AssertionError: it did not hit.
    """
    try:
        run_ranks(world_size, train_and_die, cfg, killed, last_words=LAST_WORDS_S)
    except RankFailed as failure:
        assert f"--- rank {killed.rank}\ndied with exit code -9" in str(failure), failure
    else:
        raise AssertionError(f"{killed} did not hit")


def train_on(cfg: ConfigContainer) -> Resumed:
    """On a rank: run `cfg` to its end, from where an earlier run has left it."""
    hook = _NotesResume()
    records = train_and_read(cfg, hook)
    return replace(hook.found, records=records)


class _NotesResume(Hook):
    found = Resumed()

    def before_run(self, loop: Loop) -> None:
        self.found = Resumed(loop.run.step, loop.resumption.notes)
