"""Runs that resume with another number of ranks or in another layout."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from tests.faults.batches import read_through
from tests.hooks import On
from tests.ranks import run_ranks
from tests.reliability.legs import leg, run_as_user
from tests.reliability.reference import made_once
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import read_metrics, tiny_config

# Ranks, and the layout of them.
GRID: dict[str, tuple[int, dict[str, Any]]] = {
    "DP1": (1, {}),
    "DP2": (2, {"micro_batch_size": 4}),
    "DP4": (4, {"micro_batch_size": 2}),
    "TP2": (2, {"tp": 2}),
    "PP2": (2, {"pp": 2, "micro_batch_size": 4}),
}
CHANGES = [("DP2", "DP1"), ("DP2", "DP4"), ("DP1", "TP2"), ("TP2", "DP1"), ("DP1", "PP2"), ("PP2", "DP1"),
           ("TP2", "PP2"), ("DP4", "DP2"), ("DP1", "DP2"), ("PP2", "DP4")]  # fmt: skip
STEPS, CLOSE = 6, 1e-5


def config(run_dir: Path, layout: str) -> ConfigContainer:
    """The run at a layout of the grid."""
    values = {"iters": STEPS, "save": True, "save_interval": 100, "kd": {"skip_lm_loss": False}}
    return tiny_config(run_dir, **values, **GRID[layout][1])


def run_until(cfg: ConfigContainer, step: int) -> int:
    """On a rank: what a recipe does, asked to stop so that `step` is the last; notes the samples of each step."""
    rank, folder = int(os.environ["RANK"]), Path(cfg.logger.run_dir) / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    ids: dict[int, list[int]] = {}

    def note(at: int, batch: Any) -> Any:
        ids.setdefault(at, []).extend(batch.sample_ids)
        (folder / f"{at}_{step}_{rank}.json").write_text(json.dumps(ids[at]))
        return batch

    def ask_to_stop(run: Any) -> None:
        if rank == 0 and run.step + 1 == step < STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    with read_through(note):
        return run_as_user(cfg, On(before_step=ask_to_stop))


def samples(run_dir: Path) -> list[list[int]]:
    """Of each step, those that any rank has read, and each step once only."""
    by_step: dict[int, set[int]] = {}
    ends: dict[int, set[str]] = {}
    for path in (run_dir / "samples").iterdir():
        step, until, _ = path.stem.split("_")
        by_step.setdefault(int(step), set()).update(json.loads(path.read_text()))
        ends.setdefault(int(step), set()).add(until)
    assert all(len(until) == 1 for until in ends.values()), f"a step was taken twice: {ends}"
    return [sorted(by_step[step]) for step in range(1, STEPS + 1)]


def _made(folder: Path) -> list[list[int]]:
    assert run_ranks(1, run_until, config(folder, "DP1"), STEPS) == [0]
    return samples(folder)


def _same(draw: Draw, run_dir: Path) -> float:
    """The largest relative difference of a loss; losses and samples must be those of the uninterrupted run."""
    whole, expected = made_once(draw, "whole", _made)
    assert samples(run_dir) == expected, f"other samples: {samples(run_dir)} instead of {expected}"
    pairs = list(zip(read_metrics(run_dir), read_metrics(whole), strict=True))
    apart = max(abs(a["logits_loss"] - b["logits_loss"]) / abs(b["logits_loss"]) for a, b in pairs)
    assert [a["step"] for a, _ in pairs] == [b["step"] for _, b in pairs]
    assert apart <= CLOSE, f"a loss is {apart:.1e} from the unbroken run's"
    return apart


def elastic(draw: Draw) -> Facts:
    """Two changes of the layout: one of those of the grid, and back or on to another."""
    first, second = CHANGES[draw.number % len(CHANGES)]
    third = draw.random.choice([name for name in GRID if name != second])
    layouts, ends = (first, second, third), [*sorted(draw.random.sample(range(1, STEPS), 2)), STEPS]
    for layout, end in zip(layouts, ends, strict=True):
        codes = run_ranks(GRID[layout][0], run_until, config(draw.folder, layout), end)
        assert set(codes) == {0 if end == STEPS else 75}, codes
    return {"changes": 2, "apart": _same(draw, draw.folder)}


def elastic_through_torchrun(draw: Draw) -> list[Facts]:
    """Five changes of the layout of one run."""
    layouts = ["DP2", *draw.random.sample(["DP4", "TP2", "DP1", "PP2"], 4), "DP2"]
    for end, layout in enumerate(layouts, 1):
        cfg = config(draw.folder / "run", layout)
        leg(run_until, cfg, end, code=0 if end == STEPS else 75, world_size=GRID[layout][0])
    apart = _same(draw, draw.folder / "run")
    return [{"changes": 1, "apart": apart}] * 5


def _apart(facts: Sequence[Facts]) -> str:
    changes = sum(fact["changes"] for fact in facts)
    apart = max(fact["apart"] for fact in facts)
    return (
        f"{changes} changes of layout: the same samples in each step, "
        f"losses within {apart:.0e} of the uninterrupted run's"
    )


ROWS = (
    Row(
        name="elastic grid",
        procedure="A run is asked to stop at a random step, resumes in another layout, is stopped again and resumes "
        "in a third: DP1, DP2, DP4, TP2 and PP2. Each step reads the samples of the uninterrupted one-rank run, and "
        "all losses are within 1e-5 of its.",
        draw=elastic,
        draws=10,
        torchrun=elastic_through_torchrun,
        result=_apart,
        mutants=(
            Mutant(
                "data begins again",
                "megatron_kd/training/run_data.py",
                "start_step=0, first_sample=consumed_samples, ",
                "start_step=0, first_sample=0 * consumed_samples, ",
                told="other samples",
            ),
            Mutant(
                "the balancer begins again",
                "megatron_kd/training/run_checkpoint.py",
                "        if run.balancer is not None and state.balancer:\n",
                "        if run.balancer is not None and state.balancer is None:\n",
                told="from the unbroken run",
            ),
            Mutant(
                "the optimizer begins again",
                "megatron_kd/training/run_checkpoint.py",
                '    load_state(run.optimizer, loaded["optimizer"])\n',
                "    _ = load_state\n",
                told="from the unbroken run",
            ),
        ),
    ),
)
