"""Pruning, then distillation, on real text: the share of the pruning loss that distillation recovers.

    python -m tools.prune_demo [--seeds 3] [--smoke]        (what `make distill-pruned` runs)

The teacher is that of `tools.demo`, reused if it is trained already. `megatron-kd prune` halves its parameters. From
these weights one student is distilled and another trained on labels, on the same tokens and at the same learning
rates. The table has the best of each by held-out loss, and the pruned model before any training.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.demo import data_overrides, make_corpus, say, teacher_job
from tools.demo_report import gap_table, table, write_report
from tools.demo_runs import Job, Result, RunFailed, finish

_DISTIL, _LABELS = "recipes/tiny/distill_pruned_tiny.py", "recipes/tiny/pretrain_pruned_tiny.py"
SIZES = ("--num-layers", "3", "--hidden-size", "128", "--ffn-hidden-size", "384")  # PRUNED of recipes/tiny
_CALIBRATION = ("--calibration-batches", "16", "--batch-size", "8")
# A recipe evaluates after a step only. A step at this learning rate leaves the initial weights as they are.
_NO_STEP = ("train.train_iters=1", "optimizer.lr=1e-12", "checkpoint.save=false")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of the demo: for every seed a teacher, its pruning and, for every learning rate, both students."""

    seeds: int
    output: Path
    corpus: Path
    student_lrs: tuple[float, ...]
    teacher_overrides: tuple[str, ...] = ()
    student_overrides: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and print its tables. Returns the exit code: 0, or that of the run that failed."""
    plan, command = _plan(_arguments(argv))
    try:
        make_corpus(plan.corpus)
        results = [result for seed in range(1, plan.seeds + 1) for result in run_seed(plan, seed)]
    except RunFailed as failure:
        say(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    files = write_report(plan.output / "pruned", results, command, gap_table(results))
    say(f"\n{table(results)}\n\n{gap_table(results)}\n\nmore in {', '.join(map(str, files))}")
    return 0


def run_seed(plan: Plan, seed: int) -> list[Result]:
    """All runs of one seed.

    Raises:
        RunFailed: by the first run that fails.
    """
    teacher = teacher_job(plan.output, plan.corpus, seed, overrides=plan.teacher_overrides)
    results = []
    for job in (teacher, *student_jobs(plan, seed, teacher)):
        say(f"[seed {seed} of {plan.seeds}] {job.title}")
        results.append(finish(job, say))
        if job is teacher:
            _prune(plan, teacher)
    return results


def student_jobs(plan: Plan, seed: int, teacher: Job) -> list[Job]:
    """The pruned model untrained, then a distilled and a label-only student for every learning rate."""
    pruned = pruned_folder(teacher)
    starts_from = (*data_overrides(plan.corpus, seed), f"checkpoint.pretrained_checkpoint={pruned}")
    inputs = _fingerprint(teacher, _prune_command(plan, teacher))
    from_teacher = (f"model.teacher.checkpoint={teacher.run_dir}",)

    def job(kind: str, recipe: str, lr: float, *own: str) -> Job:
        return Job(
            kind=kind,
            seed=seed,
            lr=lr,
            recipe=recipe,
            overrides=(*starts_from, *plan.student_overrides, *own),
            run_dir=pruned.with_name(f"pruned-{kind}" + (f"-lr{lr:g}" if lr else "")),
            inputs=inputs,
        )

    untrained = job("untrained", _LABELS, 0.0, *_NO_STEP)
    trained = [
        job(kind, recipe, lr, f"optimizer.lr={lr:g}", *own)
        for lr in plan.student_lrs
        for kind, recipe, own in (("distilled", _DISTIL, from_teacher), ("labels", _LABELS, ()))
    ]
    return [untrained, *trained]


def pruned_folder(teacher: Job) -> Path:
    """The folder of the pruned teacher."""
    return teacher.run_dir.with_name("pruned")


def _prune(plan: Plan, teacher: Job) -> None:
    """Prune the teacher, unless an equal command has done so already."""
    folder, command = pruned_folder(teacher), _prune_command(plan, teacher)
    record = folder.with_name("pruned.fingerprint")
    fingerprint = _fingerprint(teacher, command)
    if folder.is_dir() and record.is_file() and record.read_text(encoding="ascii") == fingerprint:
        say(f"  pruned earlier, in {folder}")
        return
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    say("  " + shlex.join(["megatron-kd", *command]))
    code = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "megatron_kd.commands.cli", *command], check=False
    ).returncode
    if code:
        raise RunFailed(f"the teacher could not be pruned: exit code {code}", code)
    record.write_text(fingerprint, encoding="ascii")


def _prune_command(plan: Plan, teacher: Job) -> list[str]:
    places = ["--output", str(pruned_folder(teacher)), "--data", f"{plan.corpus}/train"]
    return ["prune", str(teacher.run_dir), *places, *SIZES, *_CALIBRATION]


def _fingerprint(teacher: Job, command: Sequence[str]) -> str:
    return hashlib.sha256(f"{teacher.fingerprint}{shlex.join(command)}".encode()).hexdigest()


def _plan(args: argparse.Namespace) -> tuple[Plan, str]:
    """The plan, and the command that makes it."""
    common = {"seeds": args.seeds, "corpus": args.corpus}
    if args.smoke:
        short = ("train.train_iters=10", "validation.eval_interval=5", "validation.eval_iters=2")
        output = args.output or Path("runs/tiny-smoke")
        plan = Plan(output=output, student_lrs=(4e-3,), teacher_overrides=short, student_overrides=short, **common)
    else:
        quiet = ("logger.log_interval=50",)
        output = args.output or Path("runs/tiny")
        plan = Plan(
            output=output, student_lrs=(1e-3, 2e-3, 4e-3), teacher_overrides=quiet, student_overrides=quiet, **common
        )
    return plan, f"make distill-pruned SEEDS={args.seeds}{' SMOKE=1' if args.smoke else ''}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.prune_demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run seeds 1 to N and average (1)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything: a check, not a result")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(runs/tiny, with --smoke runs/tiny-smoke)")
    parser.add_argument("--corpus", type=Path, default=Path("data/stdlib"), metavar="DIR", help="(data/stdlib)")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: must be 1 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
