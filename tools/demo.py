"""The whole demo on real text: a teacher, a distilled student, the same student on labels alone, and one table.

    python -m tools.demo [--seeds 3] [--smoke]        (what `make distill` runs)

Every run is a torchrun of a recipe in recipes/tiny, on two gloo ranks: the teacher data-parallel, the students
tensor-parallel. Both students start from the same weights, read the same tokens and sweep the same learning rates;
the table has the best of each by held-out loss. Finished runs are reused, interrupted ones resumed, and runs whose
inputs have changed (a recipe value, the corpus, the teacher) repeated. Changes of the code are not noticed: after
one, `rm -r runs/tiny`.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.demo_report import table, write_report
from tools.demo_runs import Job, Result, RunFailed, finish

TEACHER_LR = 4e-3

_TP2 = ("model.tensor_model_parallel_size=2", "train.micro_batch_size=16")
_QUIET = ("logger.log_interval=50",)
_SHORT = ("validation.eval_interval=5", "validation.eval_iters=2")
say = partial(print, flush=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of the demo: for every seed a teacher and, for every learning rate, both students."""

    seeds: int
    output: Path
    corpus: Path
    teacher_lr: float
    student_lrs: tuple[float, ...]
    teacher_overrides: tuple[str, ...] = ()
    student_overrides: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and print its table. Returns the exit code: 0, or that of the run that failed."""
    plan, command = _plan(_arguments(argv))
    started = time.monotonic()
    try:
        make_corpus(plan.corpus)
        results = run_plan(plan)
    except RunFailed as failure:
        say(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    files = write_report(plan.output, results, command)
    say(f"\n{table(results)}\n\nmore in {', '.join(map(str, files))}; {time.monotonic() - started:.0f} s in total")
    return 0


def run_plan(plan: Plan) -> list[Result]:
    """Run all jobs of the plan in order.

    Raises:
        RunFailed: by the first job that fails.
    """
    results = []
    total = plan.seeds * (1 + 2 * len(plan.student_lrs))
    for seed in range(1, plan.seeds + 1):
        for job in jobs_of_seed(plan, seed):
            say(f"[{len(results) + 1}/{total}] {job.title}")
            results.append(finish(job, say))
    return results


def jobs_of_seed(plan: Plan, seed: int) -> list[Job]:
    """The teacher, then a distilled and a label-only student for every learning rate."""
    data = data_overrides(plan.corpus, seed)
    teacher = teacher_job(plan.output, plan.corpus, seed, lr=plan.teacher_lr, overrides=plan.teacher_overrides)
    from_teacher = ("model.teacher.tensor_model_parallel_size=2", f"model.teacher.checkpoint={teacher.run_dir}")
    students = (
        ("distilled", "recipes/tiny/distill_tiny.py", from_teacher, teacher.fingerprint),
        ("labels", "recipes/tiny/pretrain_tiny_student.py", (), teacher.inputs),
    )
    return [teacher] + [
        Job(
            kind=kind,
            seed=seed,
            lr=lr,
            recipe=recipe,
            overrides=(*data, *_TP2, *own, f"optimizer.lr={lr:g}", *plan.student_overrides),
            run_dir=teacher.run_dir.with_name(f"{kind}-lr{lr:g}"),
            inputs=inputs,
        )
        for lr in plan.student_lrs
        for kind, recipe, own, inputs in students
    ]


def teacher_job(
    output: Path, corpus: Path, seed: int, *, lr: float = TEACHER_LR, overrides: tuple[str, ...] = ()
) -> Job:
    """The training job of a seed's teacher, shared by all students of that seed."""
    manifest = (corpus / "manifest.json").read_bytes()
    return Job(
        kind="teacher",
        seed=seed,
        lr=lr,
        recipe="recipes/tiny/pretrain_tiny.py",
        overrides=(*data_overrides(corpus, seed), f"optimizer.lr={lr:g}", *overrides),
        run_dir=output / f"seed{seed}" / "teacher",
        inputs=hashlib.sha256(manifest).hexdigest(),
    )


def data_overrides(corpus: Path, seed: int) -> tuple[str, ...]:
    """Overrides that make a recipe read the corpus, in the order of `seed`."""
    return (
        f"rng.seed={seed}",
        f"dataset.train_data_path=[{corpus}/train]",
        f"dataset.valid_data_path=[{corpus}/valid]",
        f"tokenizer.tokenizer_model={corpus}/tokenizer",
    )


def make_corpus(corpus: Path) -> None:
    """Make the corpus and its tokenizer, unless they exist.

    Raises:
        RunFailed: the corpus cannot be made.
    """
    say(f"[0] corpus and tokenizer in {corpus}")
    command = [sys.executable, "tools/make_corpus.py", "--output", str(corpus), "--vocab-size", "2048"]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise RunFailed(f"the corpus could not be made: {' '.join(command)} ended with exit code {code}", code)


def _plan(args: argparse.Namespace) -> tuple[Plan, str]:
    """The plan, and the command that makes it."""
    if args.smoke:
        plan = Plan(
            seeds=args.seeds,
            output=args.output or Path("runs/tiny-smoke"),
            corpus=args.corpus,
            teacher_lr=TEACHER_LR,
            student_lrs=(1e-2,),
            teacher_overrides=("train.train_iters=20", *_SHORT),
            student_overrides=("train.train_iters=20", *_SHORT),
        )
    else:
        plan = Plan(
            seeds=args.seeds,
            output=args.output or Path("runs/tiny"),
            corpus=args.corpus,
            teacher_lr=TEACHER_LR,
            student_lrs=(5e-3, 1e-2, 2e-2),
            teacher_overrides=_QUIET,
            student_overrides=_QUIET,
        )
    return plan, f"make distill SEEDS={args.seeds}{' SMOKE=1' if args.smoke else ''}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=(__doc__ or "").partition("\n")[0])
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
