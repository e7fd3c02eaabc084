"""A long run under many faults."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.instants import Instant
from tests.faults.legs import Fault, Leg
from tests.faults.runs import LAST_WORDS_S
from tests.faults.soak import Soaked, grown, size_of, soaked_leg
from tests.ranks import RankFailed, run_ranks
from tests.reliability.launched import through_torchrun
from tests.reliability.reference import made_once, same_as, same_losses
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import read_metrics, tiny_config, train_and_read

STEPS, INTERVAL = 1000, 20
TORCHRUN_STEPS = 200
LONG = 400  # steps of the first leg, over which it is measured
EARLY, LATE = 101, 381
MOST_KIB = 8192  # that a process may grow by from one to the other, in what its allocators keep
PHASES = ("reading data", "forward and backward", "reducing gradients", "optimizer step")
SIZES: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 2, "num_query_groups": 1, "seq_length": 8}


def soak_config(run_dir: Path, iters: int, *, in_background: bool = False) -> Any:
    """The smallest run there is, with dropout, that saves every `INTERVAL` steps and keeps two checkpoints."""
    student = {**SIZES, "hidden_size": 16, "ffn_hidden_size": 32, "hidden_dropout": 0.1}
    teacher = {**SIZES, "hidden_size": 16, "ffn_hidden_size": 32, "num_layers": 2}
    return tiny_config(
        run_dir, iters=iters, micro_batch_size=4, student=student, teacher=teacher,
        save=True, save_interval=INTERVAL, most_recent_k=2, async_save=in_background,
    )  # fmt: skip


def leg_of(draw: Draw, number: int, step: int) -> tuple[str, Soaked]:
    """The faults of a leg that resumes from `step`: a NaN, and 25 to 60 steps after `step` a kill or a signal."""
    end = step + draw.random.randrange(25, 60)
    nan = (step + draw.random.randrange(2, 20),)
    rank, kind = draw.random.randrange(2), ("kill", "preemption", "kill in a save")[number % 3]
    if kind == "kill in a save":
        at = Instant("operation", draw.random.randrange(4), f"iter_{-(-end // INTERVAL) * INTERVAL:07d}")
    else:
        at = Instant("phase", phase=draw.random.choice(PHASES), step=end)
    how = signal.SIGKILL if kind != "preemption" else draw.random.choice((signal.SIGTERM, signal.SIGUSR1))
    return kind, Soaked((Fault(rank, at, how),), nan)


def soaked(draw: Draw) -> Facts:
    """One run of 1,000 steps in many legs on forked ranks."""
    whole, _ = made_once(draw, "whole", lambda at: len(run_ranks(2, train_and_read, soak_config(at, STEPS))))
    run_dir, counts = draw.folder / "run", {"kill": 0, "preemption": 0, "kill in a save": 0, "NaN": 0}
    fault = Fault(0, Instant("operation", 3, f"iter_{LONG:07d}"))
    kind, plan = "kill in a save", Soaked((fault,), (50, 150, 250, 350), (EARLY, LATE))
    number = step = computed = 0
    growth: list[dict[str, int]] = []
    while True:
        folder = draw.folder / f"leg_{number}"
        folder.mkdir()
        run_leg(soak_config(run_dir, STEPS, in_background=number % 2 == 1), plan, folder)
        computed += size_of(folder / "computed")
        counts["NaN"] += size_of(folder / "nans")
        hits = len(Leg.read(folder).hits)
        counts[kind] += hits
        if number == 0:
            growth = grown(folder)
            check_growth(growth)
            same_losses(whole, run_dir, records=len(read_metrics(run_dir)))  # what differs shows early
        if (draw.folder / "run" / "checkpoints" / f"iter_{STEPS:07d}").exists() and not hits:
            break
        number, step = number + 1, newest(run_dir)
        kind, plan = leg_of(draw, number, step)
        if step > STEPS - 80:
            plan = replace(plan, faults=(), nans=())
    same_as(whole, run_dir, STEPS)
    most = {name: max(rank[name] for rank in growth) for name in growth[0]}
    return {"computed": computed, "needed": STEPS, "legs": number + 1, "counts": counts, "growth": most}


def newest(run_dir: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(path.name.removeprefix("iter_")) for path in (run_dir / "checkpoints").glob("iter_*"))


def run_leg(cfg: Any, plan: Soaked, folder: Path) -> None:
    """A leg on forked ranks: it is killed, ends with 75, or comes to its end.

    Raises:
        AssertionError: it ends otherwise.
    """
    killed = any(fault.signal == signal.SIGKILL for fault in plan.faults)
    try:
        codes = run_ranks(2, soaked_leg, cfg, plan, folder, last_words=LAST_WORDS_S, timeout=120)
    except RankFailed as failure:
        assert killed and "died with exit code -9" in str(failure), failure
    else:
        assert not killed and set(codes) == {75 if plan.faults else 0}, f"{plan} ended with {codes}"
    notes = Leg.read(folder).notes
    assert not notes, f"a checkpoint was refused: {notes}"


def check_growth(growth: Sequence[dict[str, int]]) -> None:
    """Nothing but a little memory is held at the end of a long leg that was not held before."""
    for rank, held in enumerate(growth):
        for name, allowed in (("descriptors", 0), ("threads", 0), ("shared", 0), ("KiB", MOST_KIB)):
            assert held[name] <= allowed, f"rank {rank} holds {held[name]} more {name} after {LATE - EARLY} steps"


def soaked_through_torchrun(draw: Draw) -> list[Facts]:
    """A run of 200 steps in six torchruns, five of which end by a fault."""
    run_dir, facts, step = draw.folder / "run", list[Facts](), 0
    cfg = soak_config(run_dir, TORCHRUN_STEPS)
    for number in range(6):
        folder = draw.folder / f"leg_{number}"
        folder.mkdir()
        kind, plan = leg_of(draw, number, step)
        plan = plan if number < 5 else Soaked()
        ended = through_torchrun(2, soaked_leg, cfg, plan, folder, folder=folder)
        found = Leg.read(folder)
        assert len(found.hits) == len(plan.faults) and (ended.code == 0) == (number == 5), ended.output
        assert found.step == step and not found.notes, f"resumed from {found}, not {step}"
        step = newest(run_dir)
        counts = {"kill": 0, "preemption": 0, "kill in a save": 0, "NaN": size_of(folder / "nans")}
        counts[kind] += len(plan.faults)
        facts.append({"computed": size_of(folder / "computed"), "needed": 0, "counts": counts})
    whole, _ = made_once(draw, "short", lambda at: len(run_ranks(2, train_and_read, soak_config(at, TORCHRUN_STEPS))))
    same_as(whole, run_dir, TORCHRUN_STEPS)
    return facts[:5]


def _goodput(facts: Sequence[Facts]) -> str:
    whole = facts[0]
    goodput, counts = whole["needed"] / whole["computed"], whole["counts"]
    assert goodput >= 0.7, f"{whole['computed']} steps computed for {whole['needed']}"
    assert all(counts.values()), f"not every fault has hit: {counts}"
    hit = ", ".join(f"{number} x {name}" for name, number in counts.items())
    growth = ", ".join(f"{number:+d} {name}" for name, number in whole["growth"].items())
    return (
        f"bitwise after {whole['needed']:,} steps in {whole['legs']} legs ({hit}); goodput {goodput:.0%}; "
        f"in {LATE - EARLY} steps of one leg {growth}"
    )


ROWS = (
    Row(
        name="soak",
        procedure="Faults are injected into a run of 1,000 steps on two ranks throughout: kills in steps and in saves, "
        "signals to stop, transient NaNs; some legs save in the background. It finishes with the losses and weights of "
        "the uninterrupted run, at least 70% of the steps it computed count, and between steps 100 and 380 no rank's "
        "process gains descriptors, threads, shared memory or more than 8 MiB of memory. Through torchrun: 200 "
        "steps, five faults.",
        draw=soaked,
        draws=1,
        torchrun=soaked_through_torchrun,
        result=_goodput,
        mutants=(
            Mutant(
                "a descriptor stays open at each save",
                "megatron_kd/runtime/files.py",
                "        os.close(descriptor)\n",
                "        pass\n",
                told="more descriptors",
            ),
            Mutant(
                "a step that is tried again draws other random numbers",
                "megatron_kd/training/step.py",
                "            set_random_state(before)\n",
                "",
                told="other losses",
            ),
        ),
    ),
)
