"""A second job that is started in the folder of a running one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from megatron_kd.config.container import ConfigContainer
from tests.faults.instants import Instant, at_instant
from tests.faults.legs import Fault, leg, told_leg
from tests.ranks import run_ranks
from tests.reliability.launched import through_torchrun
from tests.reliability.reference import RUN, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config

Job = Literal["the same", "another layout", "illegal values", "asked to stop", "killed"]
FORKED: tuple[Job, ...] = ("the same", "illegal values", "another layout", "asked to stop")
LAUNCHED: tuple[Job, ...] = (*FORKED, "killed")
CODES: dict[Job, int] = {"the same": 2, "another layout": 2, "illegal values": 2, "asked to stop": 75, "killed": 1}
_WAIT_S = 60
_AT_THE_START = Instant("call")  # the ranks are up, and do not yet know that the folder is another's


def standing_leg(cfg: ConfigContainer, instant: Instant, folder: Path) -> int:
    """On a rank: run `cfg`; rank 0 pauses at an instant, until there is a file `go_on` in the folder."""
    from megatron_kd import main

    with ExitStack() as held:
        if os.environ["RANK"] == "0":
            do = partial(_stand_still, folder)
            held.enter_context(at_instant(instant, Path(cfg.logger.run_dir), do))
        return main(lambda: cfg, [])


def _stand_still(folder: Path, where: str) -> None:
    (folder / "stands.tmp").write_text(f"{os.getpid()} {where}")
    (folder / "stands.tmp").rename(folder / "stands")
    _until((folder / "go_on").exists, 5 * _WAIT_S)


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@contextmanager
def standing_run(folder: Path, start: Callable[[], Any]) -> Iterator[tuple[int, str]]:
    """A run that `start` runs to its end in the background, and that is paused within the block.

    Yields:
        The process of its rank 0, and where it is paused.
    """
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(start)
        try:
            _until(lambda: (folder / "stands").exists() or ended.done(), 2 * _WAIT_S)
            assert not ended.done(), f"it never stood still: {ended.result()}"
            pid, _, where = (folder / "stands").read_text().partition(" ")
            yield int(pid), where
        finally:
            (folder / "go_on").touch()
        ended.result()


def second_job(cfg: ConfigContainer, job: Job) -> tuple[ConfigContainer, list[Fault]]:
    """The configuration of the second job, and the faults injected into it."""
    faults = []
    if job == "illegal values":
        cfg.optimizer.lr = -1.0
    elif job == "another layout":
        cfg.model.tensor_model_parallel_size = cfg.model.teacher.tensor_model_parallel_size = 2
    elif job == "asked to stop":
        faults = [Fault(rank, _AT_THE_START, signal.SIGTERM) for rank in (0, 1)]
    elif job == "killed":
        faults = [Fault(1, _AT_THE_START)]
    return cfg, faults


def started_beside(draw: Draw) -> Facts:
    """Start a second job in the folder of a paused run, then let the run continue."""
    whole, operations = unbroken(draw)
    job = FORKED[draw.number % 4]
    instant = _in_a_save(draw, operations[0]) if (draw.number + draw.number // 4) % 2 == 0 else _in_a_step(draw)
    run_dir, notes = draw.folder / "run", draw.folder / "second"
    notes.mkdir()
    first = partial(run_ranks, 2, standing_leg, tiny_config(run_dir, **RUN), instant, draw.folder, timeout=3 * _WAIT_S)
    with standing_run(draw.folder, first) as (pid, where):
        before = _settled(run_dir)
        ended = run_ranks(2, told_leg, *second_job(tiny_config(run_dir, **RUN), job), notes)
        _check_second(job, [code for code, _ in ended], "".join(told for _, told in ended), pid)
        _check_unchanged(before, run_dir)
    _check_first(whole, run_dir)
    return {"job": job, "in_save": instant.kind == "operation", "where": where}


def started_through_torchrun(draw: Draw) -> list[Facts]:
    """Start five jobs, one after the other, in the folder of a paused run; agents start them all."""
    whole, operations = unbroken(draw)
    run_dir = draw.folder / "run"
    run_dir.mkdir()
    started: dict[str, Any] = {"agent_of": run_dir, "timeout": 4 * _WAIT_S}
    instant, cfg = _in_a_save(draw, operations[0]), tiny_config(run_dir, **RUN)
    first = partial(through_torchrun, 2, standing_leg, cfg, instant, draw.folder, folder=draw.folder, **started)
    facts = []
    with standing_run(draw.folder, first) as (pid, where):
        before = _settled(run_dir)
        for job in LAUNCHED:
            notes = draw.folder / job
            notes.mkdir()
            second = second_job(tiny_config(run_dir, **RUN), job)
            ended = through_torchrun(2, leg, *second, notes, folder=notes, **started)
            _check_second(job, [ended.code], ended.output, pid)
            _check_unchanged(before, run_dir)
            facts.append({"job": job, "in_save": True, "where": where})
    _check_first(whole, run_dir)
    return facts


def _in_a_save(draw: Draw, operations: Sequence[Sequence[str]]) -> Instant:
    part = f"iter_{draw.random.choice((4, 6)):07d}"
    made = [path for _, path in operations if part in path]
    return Instant("operation", draw.random.randrange(2, len(made)), part, torn=False)


def _in_a_step(draw: Draw) -> Instant:
    return Instant("phase", phase="forward and backward", step=draw.random.randrange(1, 6))


def _settled(run_dir: Path) -> dict[str, bytes]:
    """The files of a paused run, once its other rank waits too."""
    before = _files(run_dir)
    for _ in range(20):
        time.sleep(0.3)
        if (now := _files(run_dir)) == before:
            return now
        before = now
    raise AssertionError("the run continues")


def _files(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def _check_second(job: Job, codes: list[int], told: str, pid: int) -> None:
    assert set(codes) == {CODES[job]}, f"the second job, {job}, ended with {codes}: {told[-3000:]}"
    if CODES[job] == 2:
        why = "optimizer.lr=-1.0" if job == "illegal values" else f"is in use by process {pid}"
        assert why in told, f"it was refused for another reason: {told[-3000:]}"


def _check_unchanged(before: dict[str, bytes], run_dir: Path) -> None:
    after = _files(run_dir)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"the second job has changed {', '.join(changed)}"


def _check_first(whole: Path, run_dir: Path) -> None:
    code = (run_dir / "exit_code").read_text()
    assert code == "0\n", f"the first run recorded exit code {code}"
    same_as(whole, run_dir, 6)


def _refusals(facts: Sequence[Facts]) -> str:
    saving = sum(fact["in_save"] for fact in facts)
    assert 0 < saving < len(facts), f"{saving} of {len(facts)} in a save"
    came = f"{saving} of {len(facts)} second jobs came in the middle of a save"
    return f"the first run bitwise in all, no file of it changed; {came}"


ROWS = (
    Row(
        name="two jobs on one folder",
        procedure="While a run is paused in a save or a step, a second job is started in its folder: the same "
        "command, one of another layout, one with an illegal value, one that is asked to stop, or (through torchrun) "
        "killed, before it knows. It is refused, naming the process of the first run, and leaves every file as it was, "
        "`exit_code` included; the first run ends as if nothing had happened.",
        draw=started_beside,
        draws=8,
        torchrun=started_through_torchrun,
        result=_refusals,
        mutants=(
            Mutant(
                "the folder is not held",
                "megatron_kd/runtime/lock.py",
                "    try:\n        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "    return True\n    try:\n        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                told="the second job, the same, ended with",
            ),
            Mutant(
                "a job records its exit code in another's folder",
                "megatron_kd/runtime/exit_code.py",
                "    if another_run_in(run_dir):\n        return\n",
                "",
                told="the second job has changed exit_code",
            ),
            Mutant(
                "leftovers are deleted before the folder is held",
                "megatron_kd/training/run_folder.py",
                "                with not_written(run_dir / LOCK):\n",
                '                delete_leftovers(run_dir / "checkpoints")\n'
                "                with not_written(run_dir / LOCK):\n",
                told=r"the second job has changed checkpoints/\.iter_\d+\.partial",
            ),
        ),
    ),
)
