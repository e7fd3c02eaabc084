"""Runs that are killed and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.reading import verify
from megatron_kd.errors import CheckpointCorrupt
from tests.faults.instants import KINDS, Instant, counted
from tests.faults.legs import Fault, killed_leg, last_leg
from tests.ranks import run_ranks
from tests.reliability.chains import chain
from tests.reliability.reference import RUN, made_once, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config

CHAIN: dict[str, Any] = {**RUN, "iters": 12}  # a save every second step
_LOSSES, _REFUSED, _BEGAN = "other losses", "a checkpoint was refused", "it began again"

NO_RANDOM_STATE = Mutant(
    "the random state of the ranks is not put back",
    "megatron_kd/training/run_checkpoint.py",
    '        set_random_state(loaded["random"])\n',
    "        pass\n",
    told=_LOSSES,
)


def spread(draw: Draw, draws: int, count: int, ranks: int = 2) -> tuple[int, int]:
    """The rank of a draw and one of `count` places: those of all draws are spread over the whole, early ones first."""
    part = (draw.number // ranks + draw.random.random()) / (draws // ranks)
    return draw.number % ranks, min(int(part * count), count - 1)


def killed_in_a_save(draw: Draw) -> Facts:
    """Kill a rank before a file operation of a random save, and resume."""
    whole, operations = unbroken(draw)
    step = draw.random.choice((4, 6))
    part = f"iter_{step:07d}"
    in_save = [sum(part in path for _, path in of_rank) for of_rank in operations]
    rank, number = spread(draw, 50, in_save[draw.number % 2])
    cfg = tiny_config(draw.folder / "run", **RUN)
    killed_leg(cfg, Fault(rank, Instant("operation", number, part)), draw.folder / "killed")
    partial = bool(leftovers(draw.folder / "run"))
    resumed = last_leg(cfg, draw.folder / "resumed")
    assert resumed.step > 0, _BEGAN
    same_as(whole, draw.folder / "run", 6)
    return {"partial": partial, "step": resumed.step}


def saves_through_torchrun(draw: Draw) -> list[Facts]:
    """Kill a run in its second save, resume it, kill it in the next, and so on."""
    _, operations = unbroken(draw)
    in_save = [sum("iter_0000004" in path for _, path in of_rank) for of_rank in operations]
    faults = []
    for number, step in enumerate((4, 6, 8, 10, 12)):
        at = Instant("operation", draw.random.randrange(in_save[number % 2]), f"iter_{step:07d}")
        faults.append([Fault(number % 2, at)])
    run_dir, partial = draw.folder / "run", list[bool]()
    legs = chain(draw, tiny_config(run_dir, **CHAIN), faults, after=lambda _: partial.append(bool(leftovers(run_dir))))
    assert [leg.step for leg in legs[1:]] == [2, 4, 6, 8, 10], _BEGAN
    return [{"partial": left, "step": leg.step} for left, leg in zip(partial, legs[1:], strict=True)]


def leftovers(run_dir: Path) -> list[Path]:
    """Folders that are being written or deleted, or were."""
    return list((run_dir / "checkpoints").glob(".*"))


def _partial_folders(facts: Sequence[Facts]) -> str:
    left = sum(fact["partial"] for fact in facts)
    assert left >= 0.6 * len(facts), f"only {left} of {len(facts)} kills left a partial folder"
    return f"bitwise in all; {left} left a partial folder; resumed from step {min(f['step'] for f in facts)} or later"


def killed_anywhere(draw: Draw) -> Facts:
    """Kill a rank at any instant of a run, and resume, or begin again if nothing was saved."""
    whole, counts = made_once(draw, "counted", lambda folder: run_ranks(2, counted, tiny_config(folder, **RUN)))
    kind = KINDS[draw.number % 4]
    rank = draw.random.randrange(2)
    part = (draw.number // 4 + draw.random.random()) / 13
    cfg = tiny_config(draw.folder / "run", **RUN)
    # A time that has passed when the run is over does not hit, and a profiled run, which was counted, is slower.
    within = counts[rank][kind] if kind != "time" else counts[rank][kind] // 3
    where = killed_leg(cfg, Fault(rank, Instant(kind, int(part * within))), draw.folder / "killed").hits
    saved = max(complete_checkpoints(draw.folder / "run/checkpoints"), default=0)
    resumed = last_leg(cfg, draw.folder / "resumed")
    assert resumed.step == saved, f"{_BEGAN}: at {resumed.step}, though {saved} was saved"
    same_as(whole, draw.folder / "run", 6)
    return {"kind": kind, "where": where[0], "step": resumed.step}


def anywhere_through_torchrun(draw: Draw) -> list[Facts]:
    """Kill a run before its next save but one, resume it, and so on."""
    counts = run_ranks(2, counted, tiny_config(draw.folder / "counted", **CHAIN))
    faults = []
    for number in range(5):
        rank, kind = draw.random.randrange(2), ("operation", "phase", "call")[number % 3]
        # A part of the rest of the run, counted from the end of the resume.
        most = counts[rank][kind] - (counts[rank]["resume"] if kind == "call" else 0)
        extra = counts[rank]["resume"] if kind == "call" else 0
        faults.append([Fault(rank, Instant(kind, extra + int(most * draw.random.uniform(0.1, 0.18))))])  # type: ignore[arg-type]
    legs = chain(draw, tiny_config(draw.folder / "run", **CHAIN), faults)
    return [
        {"kind": faults[number][0].instant.kind, "where": legs[number].hits[0], "step": legs[number + 1].step}
        for number in range(5)
    ]


def _places(facts: Sequence[Facts]) -> str:
    later, places = sum(fact["step"] > 0 for fact in facts), len({fact["where"] for fact in facts})
    assert places >= 0.6 * len(facts), f"only {places} places in {len(facts)} draws"
    return f"bitwise in all; {places} places; {later} resumed from a checkpoint, {len(facts) - later} had none yet"


def broken_run(draw: Draw) -> tuple[Path, list[dict[str, int]]]:
    """A run killed in its second save, made once, and the number of instants in the run that resumes from it."""

    def make(folder: Path) -> list[dict[str, int]]:
        cfg = tiny_config(folder / "run", **RUN)
        killed_leg(cfg, Fault(0, Instant("operation", 9, "iter_0000004")), folder / "killed")
        assert leftovers(folder / "run"), "the kill left nothing"
        shutil.copytree(folder / "run", folder / "counted")
        return run_ranks(2, counted, tiny_config(folder / "counted", **RUN))

    folder, counts = made_once(draw, "broken", make)
    return folder / "run", counts


def killed_in_resume(draw: Draw) -> Facts:
    """Kill a rank of a resuming run before its first step; then resume again."""
    whole, _ = unbroken(draw)
    broken, counts = broken_run(draw)
    shutil.copytree(broken, draw.folder / "run")
    cfg = tiny_config(draw.folder / "run", **RUN)
    rank, number = spread(draw, 20, counts[draw.number % 2]["resume"])
    killed = killed_leg(cfg, Fault(rank, Instant("call", number)), draw.folder / "killed")
    again = last_leg(cfg, draw.folder / "resumed")
    assert again.step == 2, _BEGAN
    same_as(whole, draw.folder / "run", 6)
    return {"where": killed.hits[0]}


def resumes_through_torchrun(draw: Draw) -> list[Facts]:
    """Kill a run in a save, kill the resuming run before its first step four more times, then let it finish."""
    _, counts = broken_run(draw)
    faults = [[Fault(0, Instant("operation", 9, "iter_0000004"))]]
    for number in range(5):
        rank = number % 2
        faults.append([Fault(rank, Instant("call", int(counts[rank]["resume"] * draw.random.uniform(0, 0.95))))])
    legs = chain(draw, tiny_config(draw.folder / "run", **RUN), faults)
    assert legs[-1].step == 2, _BEGAN
    return [{"where": leg.hits[0]} for leg in legs[1:-1]]


def _functions(facts: Sequence[Facts]) -> str:
    return f"bitwise in all; killed in {len({fact['where'] for fact in facts})} functions"


DELETING: dict[str, Any] = {**RUN, "save_interval": 1, "most_recent_k": 1}


def killed_in_a_deletion(draw: Draw) -> Facts:
    """Kill a run while it deletes an old checkpoint, and, in every fourth draw, while it deletes what that left."""
    whole, _ = unbroken(draw, save_interval=1)
    run_dir = draw.folder / "run"
    keep = 1 + draw.number % 2
    cfg = tiny_config(run_dir, **{**DELETING, "most_recent_k": keep})
    old = 1 + draw.random.randrange(6 - keep)
    part = f".iter_{old:07d}.deleted" if draw.number % 4 else f"iter_{old:07d}"
    number = 0 if draw.number % 4 else _before_renaming(draw, old)
    hits = [killed_leg(cfg, Fault(0, Instant("operation", number, part)), draw.folder / "killed").hits[0]]
    check_complete(run_dir, at_least=keep)
    if draw.number % 4 == 3:
        fault = Fault(0, Instant("operation", 0, ".deleted-"))
        hits.append(killed_leg(cfg, fault, draw.folder / "killed again").hits[0])
        check_complete(run_dir, at_least=keep)
    resumed = last_leg(cfg, draw.folder / "resumed")
    assert resumed.step == old + keep, f"{_BEGAN}: at {resumed.step}"
    assert not leftovers(run_dir), f"leftovers stay: {leftovers(run_dir)}"
    assert len(complete_checkpoints(run_dir / "checkpoints")) == keep, "other checkpoints than are to be kept"
    same_as(whole, run_dir, 6)
    return {"deleting": sum(hit.startswith("delete") for hit in hits), "hits": len(hits)}


def _before_renaming(draw: Draw, old: int) -> int:
    """The number of the operation, of those on a checkpoint, that is the first of its deletion."""
    _, operations = unbroken(draw, save_interval=1)
    return sum(f"iter_{old:07d}" in path for _, path in operations[0])


def check_complete(run_dir: Path, at_least: int) -> None:
    """Check that each folder named as a checkpoint is complete, and that there are enough of them."""
    found = complete_checkpoints(run_dir / "checkpoints")
    assert len(found) >= at_least, f"{len(found)} checkpoints are left"
    for path in found.values():
        try:
            verify(path)
        except CheckpointCorrupt as error:
            raise AssertionError(f"half a checkpoint has its name: {error}") from error


def deletions_through_torchrun(draw: Draw) -> list[Facts]:
    """Kill a run while it deletes its first checkpoint, resume it, kill it in a later deletion, and so on."""
    faults = [[Fault(0, Instant("operation", 0, f".iter_{old:07d}.deleted"))] for old in (1, 3, 5, 7, 9)]
    run_dir = draw.folder / "run"
    legs = chain(draw, tiny_config(run_dir, **{**DELETING, "iters": 12}), faults)
    assert [leg.step for leg in legs[1:]] == [2, 4, 6, 8, 10], _BEGAN
    assert not leftovers(run_dir), f"leftovers stay: {leftovers(run_dir)}"
    return [{"deleting": 1, "hits": 1} for _ in faults]


def _deletions(facts: Sequence[Facts]) -> str:
    hits, deleting = sum(fact["hits"] for fact in facts), sum(fact["deleting"] for fact in facts)
    assert deleting >= 0.6 * hits, f"only {deleting} of {hits} kills were in the middle of a folder"
    return f"bitwise in all; {deleting} of {hits} kills left half a folder; no named checkpoint was harmed"


ROWS = (
    Row(
        name="kill -9 inside a save",
        procedure="One of two ranks is killed before one of the operations on the files of a save, spread over all of "
        "them. The same command resumes from a complete checkpoint, with the uninterrupted run's losses and weights.",
        draw=killed_in_a_save,
        draws=50,
        torchrun=saves_through_torchrun,
        result=_partial_folders,
        mutants=(
            Mutant(
                "a folder gets its name before its last files are written",
                "megatron_kd/checkpoints/writing.py",
                "    files = write_index(draft.plan, everyone, folder)\n",
                "    publish(folder, draft.final)\n    folder = draft.final\n"
                "    files = write_index(draft.plan, everyone, folder)\n",
                told=_REFUSED,
            ),
            Mutant(
                "a folder has its name from the start",
                "megatron_kd/checkpoints/folders.py",
                '    partial = _other_name(final, "partial")\n',
                "    partial = final\n",
                told=_REFUSED,
            ),
            NO_RANDOM_STATE,
        ),
        mutant_draws=(40, 42, 44, 46, 48),  # rank 0, towards the end of a save
    ),
    Row(
        name="kill -9 anywhere",
        procedure="One of two ranks is killed at an instant of the whole run, startup included: before an operation on "
        "files, in a phase of a step, before a call of a function, or after a time. The same command resumes from the "
        "newest checkpoint, or begins again if there is none, with the uninterrupted run's losses and weights.",
        draw=killed_anywhere,
        draws=50,
        torchrun=anywhere_through_torchrun,
        result=_places,
        mutants=(
            Mutant(
                "records of steps that were lost stay",
                "megatron_kd/training/hooks/metrics.py",
                "_drop_after(path, resumed_step)",
                "[]",
                told=_LOSSES,
            ),
            Mutant(
                "data is read from the start again",
                "megatron_kd/training/train.py",
                "            batches = data.training(run.consumed_samples)\n",
                "            batches = data.training(0)\n",
                told=_LOSSES,
            ),
            Mutant(
                "the optimizer's state is not put back",
                "megatron_kd/training/run_checkpoint.py",
                '    load_state(run.optimizer, loaded["optimizer"])\n',
                "",
                told=_LOSSES,
            ),
        ),
        mutant_draws=(29, 33, 37, 41, 45),  # in phases of the second half
    ),
    Row(
        name="kill -9 during resume",
        procedure="A run that resumes after a kill inside a save is killed again before its first step, before a call "
        "of one of its functions, spread over all of them. The same command resumes from the same checkpoint.",
        draw=killed_in_resume,
        draws=20,
        torchrun=resumes_through_torchrun,
        result=_functions,
        mutants=(
            Mutant(
                "a run folder stays in use by a run that is dead",
                "megatron_kd/runtime/lock.py",
                "        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "        file.seek(0)\n        if file.read():\n            raise BlockingIOError\n",
                told="is in use by process",
            ),
            NO_RANDOM_STATE,
        ),
    ),
    Row(
        name="kill -9 during deletion",
        procedure="A run that keeps one or two checkpoints is killed before it renames an old one, in the middle of "
        "deleting it, and in every fourth draw again while it deletes what that left. What has a checkpoint's name is "
        "complete, the same command resumes from the newest, and nothing else is left.",
        draw=killed_in_a_deletion,
        draws=20,
        torchrun=deletions_through_torchrun,
        result=_deletions,
        mutants=(
            Mutant(
                "a checkpoint is deleted under its name",
                "megatron_kd/checkpoints/folders.py",
                "        os.rename(path, doomed)  # first: half a checkpoint never has its name\n",
                "        doomed = path\n",
                told="half a checkpoint has its name",
            ),
            Mutant(
                "the newest checkpoint is deleted as well",
                "megatron_kd/checkpoints/folders.py",
                "[: -max(keep, 1)]",
                "[:]",
                told="checkpoints are left|began again",
            ),
            Mutant(
                "what a kill has left is not deleted",
                "megatron_kd/checkpoints/folders.py",
                "        for path in folder.glob(pattern):\n            _delete(path)\n",
                "        pass\n",
                told="leftovers stay|did not hit",
            ),
        ),
    ),
)
