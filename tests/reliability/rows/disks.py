"""Disks that are full or fail, and saves in the background that do."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_kd.checkpoints.reading import verify
from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import CheckpointNotSaved, RunFileNotWritten
from megatron_kd.runtime import files
from megatron_kd.training.hooks.hook import Hook
from tests.checkpoints.test_failures import built
from tests.faults.full_disk import fill, filled_at, full_between, make_room, small_disk
from tests.faults.runs import train_on
from tests.faults.writes import Operation, at, fail, operations
from tests.hooks import On
from tests.ranks import run_ranks
from tests.reliability.legs import leg, run_as_user, unbroken_end
from tests.reliability.reference import RUN, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config

CODES = (errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENODEV)
SIZES = 10
_TOLD = re.compile(r"iter_0000004 was not saved: .*; it needs (\d+) bytes, (\d+) bytes are free in \S+/checkpoints\.")


def told_not_saved(cfg: ConfigContainer, *hooks: Hook) -> str:
    """On a rank: run `cfg`, whose save must fail; what is raised."""
    from megatron_kd.training.train import train

    try:
        train(cfg, hooks)
    except (CheckpointNotSaved, RunFileNotWritten) as error:
        assert error.exit_code == 1
        return str(error)
    raise AssertionError("the run ended as if it had saved")


def run_on_a_full_disk(cfg: ConfigContainer, disk: Path, left: int, checked: bool) -> str:
    """On a rank: no byte is left from step 1 to step 2, then there is room, and `left` bytes while step 4 is saved."""
    with filled_at(disk, 4, left, checked=checked):
        return told_not_saved(cfg, full_between(disk, 1, 2))


def full_disk(draw: Draw) -> Facts:
    """Fill a real disk, except for a number of bytes, when a run saves; resume once there is room."""
    whole, _ = unbroken(draw)
    needed = sum(path.stat().st_size for path in (whole / "checkpoints/iter_0000006").iterdir())
    # The first finds the disk full before the run has its folder, the second and third before they write.
    left = needed * draw.number // SIZES
    with small_disk(draw.folder / "disk") as disk:
        cfg = tiny_config(disk / "run", **RUN)
        if draw.number == 0:
            fill(disk, left)
            said = run_ranks(2, told_not_saved, cfg)
            assert said[0] == said[1] and re.search(
                r"run/\S+ was not written: No space .*; \d+ bytes are free", said[0]
            )
        else:
            said = run_ranks(2, run_on_a_full_disk, cfg, disk, left, draw.number > 2)
            _refused_whole(said, disk / "run", needed, left)
        make_room(disk)
        resumed = run_ranks(2, train_on, cfg)[0]
        assert resumed.step == (2 if draw.number else 0)
        same_as(whole, disk / "run", 6)
    return {"left": left, "whole": needed}


def _refused_whole(said: list[str], run_dir: Path, needed: int, left: int) -> None:
    assert said[0] == said[1], f"the ranks say {said}"
    told = _TOLD.search(said[0])
    assert told, said[0]
    assert 0.5 * needed < int(told[1]) < 2 * needed and int(told[2]) <= left + 4096, (said[0], needed, left)
    _only(run_dir, 2)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert lines[0].startswith('{"step": 1,'), "the line of the step on a full disk is lost"


def _only(run_dir: Path, *steps: int) -> None:
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert left == [f"iter_{step:07d}" for step in steps], f"left behind: {left}"
    for name in left:
        verify(run_dir / "checkpoints" / name)


def fill_as_user(cfg: ConfigContainer, disk: Path, step: int, left: int) -> int:
    """On a rank: `run_as_user` with a disk that is full when it saves after `step` steps."""
    with filled_at(disk, step, left, checked=left > 0):
        return run_as_user(cfg)


EACH_STEP = {**RUN, "save_interval": 1}


def full_disk_through_torchrun(draw: Draw) -> list[Facts]:
    """Fill the disk at the second save of each of five starts, make room, and start again."""
    whole, _ = unbroken(draw)
    needed = sum(path.stat().st_size for path in (whole / "checkpoints/iter_0000006").iterdir())
    facts = []
    with small_disk(draw.folder / "disk") as disk:
        cfg = tiny_config(disk / "run", **EACH_STEP)
        for step in range(2, 7):
            left = 0 if step == 2 else draw.random.randrange(1, needed)
            output = leg(fill_as_user, cfg, disk, step, left, code=1)
            assert output.count(f"iter_{step:07d} was not saved: ") == 2, output  # by each rank
            _only(disk / "run", *range(1, step))
            make_room(disk)
            facts.append({"left": left, "whole": needed})
        unbroken_end(cfg)
        same_as(whole, disk / "run", 6)
    return facts


def _sizes(facts: Sequence[Facts]) -> str:
    sizes = sorted({fact["left"] for fact in facts})
    whole = facts[0]["whole"]
    return f"bitwise in all {len(facts)}, with {sizes[0]} to {sizes[-1]:,} bytes free for a checkpoint of {whole:,}"


def fail_some(cfg: ConfigContainer, plans: list[tuple[int, str, int, int]]) -> list[str]:
    """On a rank: save once for each plan, which fails on a rank at an operation of a name with a code.

    Args:
        plans: rank, name of the operation, part of all of that name at which one fails in percent, and code.

    Returns:
        What failed on this rank.
    """
    import torch.distributed as dist

    from megatron_kd.training.run_checkpoint import save_checkpoint

    folder, hits = Path(cfg.logger.run_dir) / "checkpoints", []
    # Files of a real size are written part by part while torch's C++ fills them; these are so with a small buffer.
    with mock.patch.object(files, "_BUFFER", 512), built(cfg) as run:
        save_checkpoint(run)
        run.step = 1
        with operations(folder) as seen:
            save_checkpoint(run)
        run.step = 2
        for rank, name, percent, code in plans:
            mine = [op.number for op in seen if op.name == name]
            if name == "sync":
                mine = mine[:-1] or mine  # the last one comes after the checkpoint has its final name
            here = rank == dist.get_rank()
            number = mine[percent * len(mine) // 100] if here else -1
            with operations(folder, at(number, fail(code))):
                try:
                    save_checkpoint(run)
                except CheckpointNotSaved as error:
                    assert f"iter_0000002 was not saved: {os.strerror(code)}" in str(error), error
                    assert "bytes are free in" in str(error), error
                else:
                    raise AssertionError(f"{name} failed on rank {rank}, and the save did not")
            hits += [name] if here else []
            dist.barrier()
            left = sorted(path.name for path in folder.iterdir())
            assert left == ["iter_0000000", "iter_0000001"], f"left behind: {left}"
            dist.barrier()
        for path in folder.iterdir():
            verify(path)
        verify(save_checkpoint(run))
    return hits


PHASES = {0: ("mkdir", "open", "write", "sync", "rename"), 1: ("open", "write", "sync")}
SAVES = 10


def write_errors(draw: Draw) -> Facts:
    """Save with an error of the disk at random operations, one after the other, of each kind and rank."""
    plans = [(rank, name) for rank, names in PHASES.items() for name in names]
    plans += draw.random.choices(plans, k=SAVES - len(plans))
    drawn = [(r, name, draw.random.randrange(100), draw.random.choice(CODES)) for r, name in plans]
    hits = run_ranks(2, fail_some, tiny_config(draw.folder, save=True, micro_batch_size=4), drawn)
    assert [len(part) for part in hits] == [sum(r == rank for r, _ in plans) for rank in (0, 1)], "a fault did not hit"
    return {"failed": len(plans)}


def fail_as_user(cfg: ConfigContainer, rank: int, name: str, step: int, code: int) -> int:
    """On a rank: `run_as_user` with an operation on the files of the save after `step` steps that fails."""

    def hits(operation: Operation) -> bool:
        there = int(os.environ["RANK"]) == rank and f"{step:07d}.partial" in str(operation.path)
        return there and operation.name == name

    with operations(Path(cfg.logger.run_dir), at(0, fail(code), hits)):
        return run_as_user(cfg)


def write_errors_through_torchrun(draw: Draw) -> list[Facts]:
    """Another phase and rank fails in the second save of each of five starts."""
    whole, _ = unbroken(draw)
    cfg, run_dir = tiny_config(draw.folder / "run", **EACH_STEP), draw.folder / "run"
    for step, (rank, name) in enumerate(((0, "open"), (1, "write"), (1, "sync"), (0, "write"), (0, "rename")), 2):
        output = leg(fail_as_user, cfg, rank, name, step, draw.random.choice(CODES), code=1)
        assert output.count(f"iter_{step:07d} was not saved: ") == 2, output
        _only(run_dir, *range(1, step))
    unbroken_end(cfg)
    same_as(whole, run_dir, 6)
    return [{"failed": 1}] * 5


def _failed(facts: Sequence[Facts]) -> str:
    failed = sum(fact["failed"] for fact in facts)
    return f"{failed} of {failed} failed saves reported by all ranks; no file was damaged"


# A failure must be reported before the next save.
BACKGROUND: dict[str, Any] = {**RUN, "iters": 12, "save_interval": 4, "async_save": True}
_SLOW_S = 0.3


def fail_in_the_background(cfg: ConfigContainer, rank: int, name: str, step: int, code: int) -> tuple[str, int, int]:
    """On a rank: run `cfg`; an operation of the save after `step` steps fails on a rank.

    Returns:
        What was raised, the step during which it failed (-1 on the other rank), and that after which it was raised.
    """
    import threading

    import torch.distributed as dist

    at_step, failed = [0], [-1]

    def slow(run: Any) -> None:
        time.sleep(_SLOW_S)

    def taken(run: Any) -> None:
        at_step[0] = run.step

    def hits(operation: Operation) -> bool:
        there = dist.get_rank() == rank and f"{step:07d}.partial" in str(operation.path)
        return there and operation.name == name and threading.current_thread() is not threading.main_thread()

    def hit(operation: Operation) -> None:
        failed[0] = at_step[0]
        fail(code)(operation)

    with operations(Path(cfg.logger.run_dir), at(0, hit, hits)):
        return told_by(cfg, On(before_step=slow, after_step=taken)), failed[0], at_step[0]


def told_by(cfg: ConfigContainer, *hooks: Hook) -> str:
    """The message that training raised, if that was an error of a save."""
    from megatron_kd.training.train import train

    try:
        train(cfg, hooks)
    except CheckpointNotSaved as error:
        return str(error)
    return "the run ended as if it had saved"


def async_failure(draw: Draw) -> Facts:
    """A background save fails on a rank; the run ends soon, and resumes from the checkpoint before."""
    whole, _ = unbroken(draw, **BACKGROUND)
    cfg = tiny_config(draw.folder, **BACKGROUND)
    rank, step = draw.number % 2, 8
    name, code = draw.random.choice(("open", "write", "sync")), draw.random.choice(CODES)
    said = run_ranks(2, fail_in_the_background, cfg, rank, name, step, code)
    _, failed, raised = said[rank]
    assert failed >= step, "the fault did not hit"
    for text, _, _ in said:
        assert f"iter_{step:07d} was not saved: {os.strerror(code)}" in text, text
    assert raised <= failed + 2, f"it failed in step {failed}, and was raised after step {raised}"
    _only(draw.folder, 4)
    assert run_ranks(2, train_on, cfg)[0].step == 4
    same_as(whole, draw.folder, 12)
    return {"late": raised - failed}


def async_through_torchrun(draw: Draw) -> list[Facts]:
    """Another save in the background fails in each of five starts."""
    whole, _ = unbroken(draw, **BACKGROUND)
    cfg, run_dir = tiny_config(draw.folder / "run", **{**BACKGROUND, "save_interval": 2}), draw.folder / "run"
    for step in range(4, 14, 2):
        output = leg(fail_as_user, cfg, step // 2 % 2, draw.random.choice(("write", "sync")), step, errno.EIO, code=1)
        assert output.count(f"iter_{step:07d} was not saved: Input/output error") == 2, output
        _only(run_dir, *range(2, step, 2))
    unbroken_end(cfg)
    same_as(whole, run_dir, 12)
    return [{"late": 0}] * 5


def _soon(facts: Sequence[Facts]) -> str:
    return f"bitwise in all {len(facts)}; raised at most {max(fact['late'] for fact in facts)} steps after it failed"


STAYS = Mutant(
    "what was written of a failed save stays",
    "megatron_kd/checkpoints/writing.py",
    "        if rank_of_ranks()[0] == 0 and draft.folder.exists():\n            discard(draft.folder)\n",
    "        _ = discard\n",
    told="left behind",
)

ROWS = (
    Row(
        name="disk full at 10 sizes",
        procedure="A real disk has no byte left while a step is logged, and a chosen number of bytes when step 4 is "
        "saved: before the run looks for room, or right after it has found it. All ranks name the path and the bytes "
        "needed and free, nothing half is left, the checkpoint before is whole, no line is lost, and once there is "
        "room the same command resumes. In one draw it is full from the start.",
        draw=full_disk,
        draws=SIZES,
        torchrun=full_disk_through_torchrun,
        result=_sizes,
        mutants=(
            Mutant(
                "a line that cannot be logged ends the run",
                "megatron_kd/training/hooks/metrics.py",
                "        except OSError as error:\n            if not self._failing:\n",
                "        except EOFError as error:\n            if not self._failing:\n",
                told="No space left on device",
            ),
            STAYS,
            Mutant(
                "the lines that waited for room are dropped",
                "megatron_kd/training/hooks/metrics.py",
                "        self._failing = bool(self._waiting)\n",
                '        self._failing, self._waiting = bool(self._waiting), b""\n',
                told="is lost",
            ),
        ),
        mutant_draws=(3, 5, 9),
    ),
    Row(
        name="write errors in each phase and rank",
        procedure="Making the folder, opening, writing (half of it), syncing and renaming fails on one of two ranks "
        "with one of five errors of the operating system, at a random operation of the save. All ranks raise the "
        "same error, what was there stays whole, and the next save succeeds.",
        draw=write_errors,
        draws=10,
        torchrun=write_errors_through_torchrun,
        result=_failed,
        mutants=(
            Mutant(
                "a file that is not on the disk counts as written",
                "megatron_kd/runtime/files.py",
                "            os.fsync(raw.fileno())\n",
                "            try:\n                os.fsync(raw.fileno())\n            except OSError:\n"
                "                pass\n",
                told="sync failed on rank \\d, and the save did not",
            ),
            STAYS,
            Mutant(
                "the disk's own error is lost in torch's",
                "megatron_kd/runtime/files.py",
                "        if raw.failure is not None and raw.failure is not error:\n",
                "        if raw.failure is error:\n",
                told="inline_container.cc.* unexpected pos",
            ),
        ),
    ),
    Row(
        name="async-save failure",
        procedure="A background save fails on one of two ranks while training continues. All ranks raise it at "
        "the next step, no earlier checkpoint is damaged, and the same command resumes from the one before, bitwise.",
        draw=async_failure,
        draws=8,
        torchrun=async_through_torchrun,
        result=_soon,
        mutants=(
            Mutant(
                "a failed part counts as written",
                "megatron_kd/checkpoints/writing.py",
                "        return error\n",
                "        return Shards([], {})\n",
                told="as if it had saved",
            ),
            Mutant(
                "the background save is not polled until the next save",
                "megatron_kd/training/hooks/saving.py",
                "                self._background.poll()\n",
                "                pass\n",
                told="and was raised after step",
            ),
        ),
    ),
)
