"""A job that a real SLURM preempts and requeues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.launch.jobs import KINDS, STEPS, output, preempted_chain, run_unbroken
from tests.ranks import run_ranks
from tests.reliability.reference import same_as
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.slurm_cluster import running_cluster

_REQUEUES = 5


def requeued(draw: Draw) -> list[Facts]:
    """Preempt one job five times, in each way that SLURM has, and compare it with the uninterrupted run."""
    kinds = [*KINDS, "signal", "requeue"]
    draw.random.shuffle(kinds)
    return _chain(draw.folder, kinds[:_REQUEUES])


def requeued_once(draw: Draw) -> Facts:
    """For mutants: the shortest chain, preempted by a signal."""
    return _chain(draw.folder, ["signal"])[0]


def _chain(folder: Path, kinds: list[str]) -> list[Facts]:
    with running_cluster(2) as cluster:
        chain = preempted_chain(cluster, folder, kinds)
    run_dir, told = folder / "a run", output(folder / "a run")
    code = (run_dir / "exit_code").read_text().strip()
    assert code == "0", f"the run recorded exit code {code}"
    missed = [step for step in chain.saved if f"continues from {run_dir}/checkpoints/iter_{step:07d}" not in told]
    assert not missed, f"it did not continue from {missed}"
    assert run_ranks(2, run_unbroken, folder / "unbroken") == [0, 0]
    same_as(folder / "unbroken", run_dir, STEPS)
    return [{"kind": kind, "step": step} for kind, step in zip(kinds, chain.saved, strict=True)]


def _requeues(facts: Sequence[Facts]) -> str:
    kinds = [fact["kind"] for fact in facts]
    told = ", ".join(f"{kinds.count(kind)} by {kind}" for kind in KINDS)
    return f"bitwise after {len(facts)} requeues ({told}), of steps {', '.join(str(fact['step']) for fact in facts)}"


ROWS = (
    Row(
        name="SLURM requeue chain of 5",
        procedure="One job of two nodes in a real SLURM on this machine is preempted five times, by a signal, by "
        "`scontrol requeue` and by its time limit coming near. Each time it saves, goes back into the queue and "
        "continues from that step; in the end it has the losses and weights of the uninterrupted run.",
        draw=requeued_once,
        draws=0,
        torchrun=requeued,
        result=_requeues,
        mutant_draws=(0,),
        mutants=(
            Mutant(
                "a run that was asked to stop writes 1, not 75",
                "megatron_kd/entry.py",
                "        ending.code = error.exit_code\n",
                "        ending.code = 1\n",
                told="did not go back into the queue",
            ),
            Mutant(
                "the exit code of an earlier attempt is left there",
                "launch/slurm/distill.sbatch",
                'then mv -f -- "$RUN_DIR/exit_code" "$RUN_DIR/exit_code.earlier"; fi\n',
                "then :; fi\n",
                told="went back into the queue 2 times",
            ),
            Mutant(
                "the job is not put back into the queue",
                "launch/slurm/distill.sbatch",
                '    scontrol requeue "$SLURM_JOB_ID"\n',
                "    :\n",
                told="did not go back into the queue, but is FAILED",
            ),
        ),
    ),
)
