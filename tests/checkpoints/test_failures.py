"""Disks that are full or fail while a checkpoint is written: on any rank, at any operation, in either kind of save."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import CheckpointNotSaved
from tests.faults.writes import Operation, at, fail, kill, operations
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_config, train_and_read
from tests.training.test_run_checkpoint import losses, weights_of


@contextmanager
def built(cfg: ConfigContainer) -> Iterator[Any]:
    """On a rank: the run of `cfg`, not started."""
    from megatron_kd.config.derived import derived
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_state import build_run

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        run = build_run(cfg, derived(cfg, layout.world_size), layout)
        run.optimizer.step()  # gives the optimizer its state
        yield run


def nothing(_: Operation) -> None:
    """Let an operation be."""


def telling(names: list[str]) -> list[int]:
    """The operations that are unlike those before: of the writes of one file after the other, the first and third."""
    runs = [len(list(itertools.takewhile(lambda n: n == "write", reversed(names[: i + 1])))) for i in range(len(names))]
    return [number for number, run in enumerate(runs) if run in (0, 1, 3)]


def fail_everywhere(cfg: ConfigContainer) -> list[tuple[str, int]]:
    """On a rank: save once for each rank and operation, which fails there.

    Returns:
        The operations that failed on this rank.
    """
    import torch.distributed as dist

    from megatron_kd.checkpoints.reading import verify
    from megatron_kd.runtime.together import from_all
    from megatron_kd.training.run_checkpoint import save_checkpoint

    folder = Path(cfg.logger.run_dir) / "checkpoints"
    hits = []
    with built(cfg) as run:
        save_checkpoint(run)
        run.step = 1
        with operations(folder) as seen:
            save_checkpoint(run)
        names = [op.name for op in seen]
        run.step = 2
        for rank, its_names in reversed(list(enumerate(from_all(names)))):
            for number in telling(its_names):
                act = at(number, fail(errno.ENOSPC)) if rank == dist.get_rank() else nothing
                with operations(folder, act), pytest.raises(CheckpointNotSaved) as told:
                    save_checkpoint(run)
                said = str(told.value)
                assert "iter_0000002 was not saved: No space left on device (" in said, (names[number], said)
                assert "bytes are free in" in said
                if rank == dist.get_rank():
                    hits.append((names[number], number))
        # The last operation syncs the parent after the folder has its name: that one is complete.
        left = sorted(p.name for p in folder.iterdir())
        assert left == ["iter_0000000", "iter_0000001", "iter_0000002"], left
        for path in folder.iterdir():
            verify(path)
    return hits


@pytest.mark.slow
def test_any_failed_operation_fails_all_ranks_and_harms_nothing(tmp_path: Path) -> None:
    hits = run_ranks(2, fail_everywhere, tiny_config(tmp_path, save=True, micro_batch_size=4), timeout=300)
    assert {name for name, _ in hits[0]} == {"mkdir", "open", "write", "sync", "rename"}
    assert {name for name, _ in hits[1]} == {"open", "write", "sync"}
    assert len(hits[0]) > 20 and len(hits[1]) >= 3


def fail_in_the_background(cfg: ConfigContainer, failing: int) -> str:
    """On a rank: train while the second save, in the background, fails on one rank; return the error."""
    import torch.distributed as dist

    from megatron_kd.training.train import train
    from tests.tiny import read_metrics

    here = dist.get_rank() == failing
    act = at(0, fail(errno.EIO), lambda op: op.name == "sync" and "0000004.partial" in str(op.path) and here)
    with operations(Path(cfg.logger.run_dir), act):
        try:
            train(cfg)
        except CheckpointNotSaved as error:
            assert len(threading.enumerate()) == 1 or all("checkpoint" not in t.name for t in threading.enumerate())
            return f"{read_metrics(Path(cfg.logger.run_dir))[-1]['step']} {error}"
    return "trained"


def asynchronous(folder: Path, **values: Any) -> ConfigContainer:
    cfg = tiny_config(folder, save=True, save_interval=2, async_save=True, micro_batch_size=4, **values)
    cfg.validation.eval_iters = 0
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_background_save_that_fails_ends_the_run_soon(failing: int, tmp_path: Path) -> None:
    """On every rank, at the next step that finds it failed; the checkpoint before is still there."""
    said = run_ranks(2, fail_in_the_background, asynchronous(tmp_path, iters=400), failing)
    assert [text.split(" ", 1)[1] for text in said] == [said[0].split(" ", 1)[1]] * 2
    assert "iter_0000004 was not saved: Input/output error" in said[0]
    assert 4 <= int(said[0].split()[0]) < 400
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iter_0000002"]


@pytest.mark.slow
def test_a_background_save_is_the_save_of_its_step(tmp_path: Path) -> None:
    """Bitwise, though training continues while it is written, and the run's end waits for the last one."""
    cfg = asynchronous(tmp_path / "a", iters=5)
    background = run_ranks(2, train_slowly_saved, cfg)
    cfg.checkpoint.async_save, cfg.logger.run_dir = False, str(tmp_path / "b")
    assert losses(background[0]) == losses(run_ranks(2, train_and_read, cfg)[0])
    for step in (2, 4, 5):
        assert weights_of(tmp_path / "a", step) == weights_of(tmp_path / "b", step)
    assert not list((tmp_path / "a/checkpoints").glob(".*"))


def train_slowly_saved(cfg: ConfigContainer) -> list[dict[str, Any]]:
    """On a rank: each file takes longer to write than a step does."""
    import time

    def slow(operation: Any) -> None:
        if operation.name == "open" and operation.path.suffix == ".distcp":
            assert threading.current_thread() is not threading.main_thread()
            time.sleep(0.5)

    with operations(Path(cfg.logger.run_dir), slow):
        return train_and_read(cfg)


def die_in_the_background(cfg: ConfigContainer) -> None:
    """On a rank: rank 1 is killed while its thread writes the second checkpoint."""
    import torch.distributed as dist

    from megatron_kd.training.train import train

    act = at(0, kill, lambda op: op.name == "write" and "0000004.partial" in str(op.path) and dist.get_rank() == 1)
    with operations(Path(cfg.logger.run_dir), act):
        train(cfg)


@pytest.mark.slow
def test_a_run_killed_in_a_background_save_goes_on_from_the_one_before(tmp_path: Path) -> None:
    cfg = asynchronous(tmp_path, iters=40)
    with pytest.raises(RankFailed, match="died with exit code -9"):
        run_ranks(2, die_in_the_background, cfg)
    folder = tmp_path / "checkpoints"
    assert [path.name.startswith(".iter_0000004.partial") for path in folder.glob(".*")] == [True]
    cfg.train.train_iters = 4
    assert run_ranks(2, train_and_read, cfg)[0][-1]["step"] == 4
    assert sorted(path.name for path in folder.iterdir()) == ["iter_0000002", "iter_0000004"]
