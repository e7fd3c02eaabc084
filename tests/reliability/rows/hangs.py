"""Runs that are asked to stop, and runs one of whose ranks is stopped or gone."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import complete_checkpoints
from tests.faults.instants import Instant
from tests.faults.legs import Fault, last_leg, told_leg
from tests.faults.lost import BEATS_S, check_stacks, check_told, lost_leg, run_until_lost, seconds_until_told
from tests.ranks import run_ranks
from tests.recipes.launch import ROOT
from tests.reliability.chains import chain
from tests.reliability.reference import RUN, made_once, same_as
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config, train_and_read

READING, FORWARD, REDUCING = "reading data", "forward and backward", "reducing gradients"
ADDING, OPTIMIZER = "adding up the losses", "optimizer step"
EVALUATION, SAVING = "evaluation", "saving a checkpoint"
PHASES = (READING, FORWARD, REDUCING, ADDING, OPTIMIZER, EVALUATION)
STOPS = (signal.SIGTERM, signal.SIGUSR1)
ASKED_TO_STOP: dict[str, Any] = {**RUN, "iters": 8, "save_interval": 100}


def evaluated(run_dir: Path, **values: Any) -> Any:
    """A run that evaluates after every second step, and saves at its end."""
    cfg = tiny_config(run_dir, **{**ASKED_TO_STOP, **values})
    cfg.validation.eval_interval = 2
    cfg.dist.step_timeout_s = cfg.dist.checkpoint_timeout_s = 20
    return cfg


def asked_to_stop(draw: Draw, step: int, phase: str) -> list[Fault]:
    """A signal to a rank in a phase of a step, and, in every fourth draw, one more to any while they save."""
    number = STOPS[draw.number // 2 % 2]
    faults = [Fault(draw.number % 2, Instant("phase", phase=phase, step=step), number)]
    if draw.number % 4 == 3:
        faults.append(Fault(draw.number % 2, Instant("phase", phase=SAVING), number))
    return faults


def preempted(draw: Draw) -> Facts:
    """Ask a rank to stop: all ranks save and stop after one step. Then resume."""
    whole, _ = made_once(draw, "whole", lambda folder: len(run_ranks(2, train_and_read, evaluated(folder))))
    phase, step = PHASES[draw.number % 6], draw.random.randrange(1, 7)
    step += phase == EVALUATION and step % 2
    faults = asked_to_stop(draw, step, phase)
    cfg, notes = evaluated(draw.folder / "run"), draw.folder / "asked"
    notes.mkdir()
    ended = run_ranks(2, told_leg, cfg, faults, notes)
    assert [code for code, _ in ended] == [75, 75], f"other exit codes: {ended}"
    hits = (notes / "hits").read_text().splitlines()
    assert len(hits) == len(faults), f"not every signal was sent: {hits}"
    saved = saved_step(draw.folder / "run", step)
    went_on = last_leg(cfg, draw.folder / "resumed").step
    assert went_on == saved, f"it resumed from {went_on}"
    same_as(whole, draw.folder / "run", 8)
    return {"where": phase, "second": len(faults) > 1}


def saved_step(run_dir: Path, step: int) -> int:
    """The step of the only checkpoint: that of the signal, or the one after it."""
    steps = list(complete_checkpoints(run_dir / "checkpoints"))
    assert steps in ([step], [step + 1]), f"checkpoints of steps {steps}, asked to stop in step {step}"
    assert (run_dir / "exit_code").read_text().strip() == "75"
    return steps[0]


def preemptions_through_torchrun(draw: Draw) -> list[Facts]:
    """Ask a run to stop in its second step, resume it, ask it again two steps later, and so on."""
    legs, phases = [], [draw.random.choice(PHASES[:5]) for _ in range(5)]
    for number, phase in enumerate(phases):
        at = Instant("phase", phase=phase, step=2 + 2 * number)
        legs.append([Fault(draw.random.randrange(2), at, draw.random.choice(STOPS))])
    found = chain(draw, evaluated(draw.folder / "run", iters=12), legs)
    steps = [leg.step for leg in found[1:]]
    for number, step in enumerate(steps):
        assert step in (2 + 2 * number, 3 + 2 * number), f"resumed from {steps}"
    return [{"where": phase, "second": False} for phase in phases]


def _stops(facts: Sequence[Facts]) -> str:
    phases, second = len({fact["where"] for fact in facts}), sum(fact["second"] for fact in facts)
    return f"all ranks ended with 75 after one step; bitwise; {phases} phases; {second} had a second signal in the save"


TIMEOUT_S = 3
ALLOWED_S = TIMEOUT_S + 2
STOPPED_IN = (FORWARD, REDUCING, SAVING)
SAVES: dict[str, Any] = {**RUN, "save_interval": 1}


def impatient(run_dir: Path, **values: Any) -> Any:
    """A run that saves after each step, whose ranks wait for each other for a short time."""
    cfg = tiny_config(run_dir, **{**SAVES, **values})
    cfg.dist.step_timeout_s = cfg.dist.checkpoint_timeout_s = TIMEOUT_S
    return cfg


def stopped(draw: Draw) -> Facts:
    """Stop a rank; the other one ends in time and says who is missed where."""
    phase, rank = STOPPED_IN[draw.number % 3], draw.random.randrange(2)
    values: dict[str, Any] = {"tp": 2, "micro_batch_size": 8} if phase == FORWARD else {}
    values["save_interval"] = 1 if phase == SAVING else 100  # a save also sets the timeout of the next steps
    fault = Fault(rank, Instant("phase", phase=phase, step=2), signal.SIGSTOP, BEATS_S)
    run_until_lost(2, impatient(draw.folder / "run", **values), fault, draw.folder / "notes", timeout=20)
    return check_stopped(draw.folder / "run", draw.folder / "notes", fault)


def check_stopped(run_dir: Path, notes: Path, fault: Fault) -> Facts:
    """Check the other rank's report about the stopped one, and how soon it came."""
    other = 1 - fault.rank
    check_told(notes, other, fault)
    check_stacks(run_dir, other)
    seconds = seconds_until_told(notes, other)
    assert seconds < ALLOWED_S, f"it took {seconds:.1f} s, not {ALLOWED_S}"
    return {"seconds": seconds}


def stopped_through_torchrun(draw: Draw) -> list[Facts]:
    """Stop a rank in its second step, resume the run, stop a rank two steps later, and so on."""
    legs = []
    for number in range(5):
        at = Instant("phase", phase=STOPPED_IN[number % 3], step=2 + 2 * number)
        legs.append([Fault(draw.random.randrange(2), at, signal.SIGSTOP, BEATS_S)])
    facts = []

    def checked(number: int) -> None:
        facts.append(check_stopped(draw.folder / "run", draw.folder / f"leg_{number}", legs[number][0]))
        for file in (draw.folder / "run/stacks").iterdir():
            file.unlink()

    chain(draw, impatient(draw.folder / "run", iters=11), legs, run=lost_leg, after=checked)
    return facts


def _seconds(facts: Sequence[Facts]) -> str:
    slowest = max(fact["seconds"] for fact in facts)
    return f"named with step, phase and stacks in all; after {slowest:.1f} s at most, of {ALLOWED_S} s"


LAYOUTS_OF_4: tuple[dict[str, Any], ...] = (
    {"tp": 2, "micro_batch_size": 4},
    {"pp": 2, "micro_batch_size": 2},
    {"micro_batch_size": 2},
)

# Ranks that end as those of a run do, and compute nothing: one is killed, the others miss it a little later.
LIGHT_RANK = """
import os, signal, sys, time
from pathlib import Path
from megatron_kd.runtime.exit_code import record_exit_code
run_dir, victim, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
(run_dir / f"ready_{rank}").touch()
while not all((run_dir / f"ready_{other}").exists() for other in range(4)):
    time.sleep(0.01)
if rank == victim:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
record_exit_code(run_dir, 1)
raise SystemExit(1)
"""


def dead_of_4(draw: Draw) -> Facts:
    """Kill one rank of four; the others name it, and so does a launcher of ranks that end as they did."""
    phase, rank = (FORWARD, REDUCING, ADDING, OPTIMIZER)[draw.number % 4], draw.random.randrange(4)
    fault = Fault(rank, Instant("phase", phase=phase, step=2), pause_s=BEATS_S)
    cfg = impatient(draw.folder / "run", **LAYOUTS_OF_4[draw.number % 3])
    run_until_lost(4, cfg, fault, draw.folder / "notes")
    others = [other for other in range(4) if other != rank]
    for other in others:
        check_told(draw.folder / "notes", other, fault)
        check_stacks(draw.folder / "run", other)
    launched_light(draw.folder / "light", rank)
    return {"seconds": max(seconds_until_told(draw.folder / "notes", other) for other in others)}


def launched_light(run_dir: Path, victim: int) -> None:
    """Start four light ranks under the launcher's agent, one of which is killed, and check whom it names."""
    run_dir.mkdir()
    (run_dir / "rank.py").write_text(LIGHT_RANK)
    words = [str(run_dir), "--standalone", "--nproc-per-node=4", str(run_dir / "rank.py"), str(run_dir), str(victim)]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_kd.launch.agent", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (done.returncode, named_first(done.stderr)) == (1, [victim]), f"the launcher says {done.stderr}"


def named_first(told: str) -> list[int]:
    """The ranks that a launcher named as the first to fail, because they were killed."""
    lines = [line for line in told.splitlines() if "was the first to fail here" in line and "killed by SIGKILL" in line]
    return [int(line.split("error: rank ")[1].split()[0]) for line in lines]


RECIPE = """
import pickle, sys
from pathlib import Path
FOLDER = Path(__file__).parent
CFG, LEGS = pickle.loads((FOLDER / "legs.pickle").read_bytes())

def recipe():
    return CFG

if __name__ == "__main__":
    from tests.faults.legs import leg
    number = int((FOLDER / "hits").read_text().count("\\n")) if (FOLDER / "hits").exists() else 0
    raise SystemExit(leg(CFG, LEGS[number] if number < len(LEGS) else [], FOLDER))
"""


def dead_through_launcher(draw: Draw) -> list[Facts]:
    """`megatron-kd launch` of four ranks, one of which is killed every second step; it starts them again each time."""
    victims = [draw.random.randrange(4) for _ in range(5)]
    phases = (FORWARD, REDUCING, ADDING, OPTIMIZER)
    legs = []
    for number, victim in enumerate(victims):
        at = Instant("phase", phase=phases[number % 4], step=2 + 2 * number)
        legs.append([Fault(victim, at, pause_s=BEATS_S)])
    cfg = tiny_config(draw.folder / "run", **{**SAVES, "iters": 11, "micro_batch_size": 2})
    (draw.folder / "legs.pickle").write_bytes(pickle.dumps((cfg, legs)))
    (draw.folder / "recipe.py").write_text(RECIPE)
    words = ["launch", "--local", str(draw.folder / "recipe.py"), "--nproc", "4", "--max-restarts", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_kd.commands.cli", *words], cwd=draw.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert named_first(done.stderr) == victims, f"named {named_first(done.stderr)}, killed {victims}: {done.stderr}"
    whole, _ = made_once(draw, "whole", lambda folder: len(run_ranks(4, train_and_read, moved(cfg, folder))))
    same_as(whole, draw.folder / "run", 11)
    return [{"seconds": 0.0} for _ in victims]


def moved(cfg: Any, folder: Path) -> Any:
    """The same run in another folder."""
    other = copy.deepcopy(cfg)
    other.logger.run_dir = str(folder)
    return other


def _named(facts: Sequence[Facts]) -> str:
    slowest = max(fact["seconds"] for fact in facts)
    return f"the rank that died is named in all, by the others after {slowest:.1f} s at most, and by the launcher"


WRONG_RANK = Mutant(
    "ranks that beat are taken for the silent ones",
    "megatron_kd/runtime/watch.py",
    "if a.count == b.count]",
    "if a.count != b.count]",
    told="is not named",
)
ROWS = (
    Row(
        name="preemption",
        procedure="One of two ranks gets SIGTERM or SIGUSR1 in a phase of a step, in every fourth draw again while it "
        "saves. All ranks stop after the same step, save and end with 75; the same command resumes, with the losses "
        "and weights of the uninterrupted run.",
        draw=preempted,
        draws=20,
        torchrun=preemptions_through_torchrun,
        result=_stops,
        mutants=(
            Mutant(
                "only the rank that got the signal stops",
                "megatron_kd/training/forward_pass.py",
                "stop_requested=asked_anywhere > 0",
                "stop_requested=asked",
                told="other exit codes|no answer",
            ),
            Mutant(
                "a run that is asked to stop does not save",
                "megatron_kd/training/hooks/saving.py",
                "if settings.save and (loop.stopping or loop.is_due(",
                "if settings.save and (loop.is_due(",
                told="checkpoints of steps|died with exit code -",
            ),
            Mutant(
                "a second signal ends the process in the save",
                "megatron_kd/runtime/signals.py",
                "        if number == signal.SIGINT:\n            signal.signal(number, signal.SIG_DFL)",
                "        if number:\n            signal.signal(number, signal.SIG_DFL)",
                told="died with exit code -",
            ),
        ),
        mutant_draws=(3, 7, 11, 15, 19),  # those with two signals
    ),
    Row(
        name="stopped rank",
        procedure="One of two ranks gets SIGSTOP in a forward, before an all-reduce of gradients, or in a save. The "
        "other one ends within the timeout and 2 s, names the rank, its step and its phase, and leaves its stacks.",
        draw=stopped,
        draws=9,
        torchrun=stopped_through_torchrun,
        result=_seconds,
        mutants=(
            WRONG_RANK,
            Mutant(
                "a step has the timeout of the startup",
                "megatron_kd/training/starting.py",
                "        set_group_timeouts(cfg.dist.step_timeout_s)\n",
                "",
                told="has not ended",
            ),
            Mutant(
                "stacks are not written",
                "megatron_kd/runtime/watch.py",
                "            faulthandler.dump_traceback(file, all_threads=True)\n",
                "",
                told="no stacks of rank",
            ),
        ),
        alone=True,
    ),
    Row(
        name="dead rank of 4",
        procedure="One of four ranks is killed in a phase of a step. The others end, each of them names it, and leave "
        "their stacks; the launcher says that it was the first to fail, and starts the run again.",
        draw=dead_of_4,
        draws=8,
        torchrun=dead_through_launcher,
        result=_named,
        mutants=(
            WRONG_RANK,
            Mutant(
                "the launcher takes a killed rank for one that was asked to stop",
                "megatron_kd/launch/agent.py",
                "    if failure.exitcode in _SAID_BY_RANKS or stopped:\n",
                "    if failure.exitcode in _SAID_BY_RANKS or killed_by is not None:\n",
                told="the launcher says",
            ),
        ),
    ),
)
