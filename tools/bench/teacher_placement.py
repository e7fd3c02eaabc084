"""Memory, time and traffic of the places where a teacher can live, in one run on CPU ranks.

    python tools/bench/teacher_placement.py
    python tools/bench/teacher_placement.py --ranks 2 --teacher-layout 1x2 --sides colocated balanced gpu0

Each side is a set of processes of its own, one per rank, with one thread each; the sets take turns, so that a change of
the machine's load hits all. Time ratios are of one round. What the tables say:

- MB are of weights, counted by tensor: a sum over ranks has the same memory once. `Pss` is what the system counts of a
  process beyond what it took before it built anything: weights, gradients, optimizer and buffers, after steps.
- A rank waits when it could not have run: for messages. Waiting for a core is not counted. Since no order of work
  makes a rank's own work shorter, a step cannot be shortened by more than the rank that waits least waits.
- Sent is what the hand-over of hidden states sends between all ranks, and beside it what the teacher's logits would
  take on the same way. It depends on nothing but sizes and layouts; a second vocabulary is measured for it alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import tools.bench.imports  # noqa: E402, F401  (first: it silences what the others' imports would warn of)
from megatron_kd.checks import problems  # noqa: E402
from tools.bench.placement.figures import Measured, Side, Sizes, Traffic  # noqa: E402
from tools.bench.placement.rank_side import bench_rank, config  # noqa: E402
from tools.bench.placement.report import report  # noqa: E402
from tools.bench.rank_sets import RankSet  # noqa: E402

SIDES = {
    "colocated": Side("colocated"),
    "balanced": Side("balanced"),
    "gpu0": Side("gpu0"),
    "cpu": Side("cpu"),
    "cpu-not-shared": Side("cpu", share=False),
}


def measure(sides: Sequence[Side], sizes: Sizes, rounds: int) -> dict[Side, Measured]:
    """Build the sets one after the other, then let them take turns, in an order that turns round every round."""
    with ExitStack() as stack:
        sets, memory = {}, {}
        for side in sides:
            sets[side] = RankSet(sizes.ranks, bench_rank, sizes, side)
            stack.callback(sets[side].close)
            memory[side] = sets[side].ask("memory")  # now: those that come later share pages with these
        steps: dict[Side, list[Any]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                steps[side].append(sets[side].ask("step"))
        return {side: Measured(memory[side], steps[side], _traffic(sets[side])) for side in sides}


def _traffic(ranks: RankSet) -> Traffic:
    each = ranks.ask("traffic")
    return Traffic(sum(rank.hidden for rank in each), sum(rank.logits for rank in each))


def wanted_sides(names: Sequence[str], teacher_batch: int | None) -> Iterator[Side]:
    """The sides by name; where the teacher's forward may be larger, those with such forwards too."""
    yield from (SIDES[name] for name in names)
    if teacher_batch is not None:
        yield from (replace(SIDES[name], teacher_batch=teacher_batch) for name in names if name in ("balanced", "gpu0"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--wide-vocab", type=int, default=32768, help="vocabulary of the second traffic table")
    parser.add_argument("--teacher-batch", type=int, default=4, help="sequences of larger forwards of the teacher")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each side")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: must be positive")
    sizes = Sizes(**{name: getattr(args, name) for name in asdict(Sizes())})
    sides = list(wanted_sides(args.sides, args.teacher_batch))
    found = [str(problem) for side in sides for problem in problems(config(sizes, side, "."), world_size=sizes.ranks)]
    if found:
        parser.error("\n".join(dict.fromkeys(found)))
    measured = measure(sides, sizes, args.rounds)
    sending = [side for side, found in measured.items() if found.traffic.hidden and side.teacher_batch is None]
    wide = measure(sending, replace(sizes, vocab=args.wide_vocab), rounds=1)
    print(report(measured, sizes, wide, args.wide_vocab))
    return 0


if __name__ == "__main__":
    sys.exit(main())
