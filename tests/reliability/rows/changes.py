"""Runs that are resumed with something changed in their configuration."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from tests.checks.test_on_resume import (
    EXPECTED,
    NOT_RUN,
    SAVED,
    STEPS,
    base,
    begin,
    differ,
    filled,
    resumed,
    write_corpora,
)
from tests.faults.batches import sample_ids_read
from tests.ranks import run_ranks
from tests.reliability.launched import through_torchrun
from tests.reliability.legs import run_as_user
from tests.reliability.reference import made_once
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import read_metrics

BATCH = 8
_ALONE = {name: line for name, line in EXPECTED.items() if len(line) == 2 and not name.endswith(NOT_RUN)}


def fields_of(kind: str) -> list[str]:
    """The fields of a kind that can be changed by themselves; the batch is another part of the row."""
    return [name for name, line in _ALONE.items() if line[0] == kind and name != "train.global_batch_size"]


def _made(folder: Path) -> Any:
    return run_ranks(1, _begun, folder)[0]


def _begun(folder: Path) -> Any:
    write_corpora(folder)
    return begin(folder, 0, {})[1]


def changed(draw: Draw) -> Facts:
    """A field of each kind by name, and one drawn; then another batch."""
    folder, whole = made_once(draw, "run", _made)
    names = [
        "checkpoint.save_interval", draw.random.choice(fields_of("free")),
        "optimizer.lr", "scheduler.lr_decay_style", draw.random.choice(fields_of("applies")),
        "rng.seed", draw.random.choice(fields_of("fixed")),
    ]  # fmt: skip
    names = list(dict.fromkeys(names))
    batch = draw.random.choice([2, 4, 16, 24])
    ends = run_ranks(1, _resume_all, folder, draw.number, names, batch)[0]
    for name, ended in zip(names, ends, strict=True):
        _as_declared(name, ended, whole)
    return {"changes": len(names) + 1}


def _resume_all(folder: Path, number: int, names: Sequence[str], batch: int) -> list[Any]:
    ends = []
    for name in names:
        change = filled({name: EXPECTED[name][1]}, folder)
        ends.append(resumed(name, folder / "begun_0", folder / f"draw_{number}", change))
    with sample_ids_read() as ids:
        sizes = {"train.global_batch_size": batch, "train.micro_batch_size": batch}
        ended = resumed("batch", folder / "begun_0", folder / f"draw_{number}", sizes)
    expected = list(range(SAVED * BATCH, SAVED * BATCH + (STEPS - SAVED) * batch))
    assert ids == expected, f"the data does not continue: {ids[:3]}, {ended.output}"
    return ends


def _as_declared(name: str, ended: Any, whole: list[Any]) -> None:
    kind = EXPECTED[name][0]
    if kind == "fixed":
        assert ended.code == 2, f"{name} was not refused: {ended.output}"
        assert re.search(rf"^error: {re.escape(name)}=.* began with ", ended.output, re.M), ended.output
        assert "checkpoint.resume=never" in ended.output, ended.output
        assert ended.changed == [], f"the refusal of {name} has changed {ended.changed}"
        return
    assert ended.code == 0, f"{name} was refused: {ended.output}"
    same = not differ(ended.records, whole)
    assert same == (kind == "free"), f"{name} {'had no effect' if same else 'changed the steps'}"
    assert (f"{name}: " in ended.output) == (kind == "applies"), f"{name} was not reported: {ended.output}"


def changed_through_torchrun(draw: Draw) -> list[Facts]:
    """One run of two ranks, through five changes: rate, length, batch, number of ranks, and a refused seed."""
    write_corpora(draw.folder)
    cfg = base(draw.folder / "run")
    cfg.train.micro_batch_size = 4
    _leg(cfg, draw.folder, 2, 0)
    cfg.train.train_iters, cfg.optimizer.lr = 10, 0.004
    _leg(cfg, draw.folder, 2, 0)
    rates = {r["step"]: r["lr"] for r in read_metrics(draw.folder / "run") if r["split"] == "train"}
    assert math.isclose(rates[9], 0.002 * (1 + math.cos(math.pi * 8 / 10))), f"step 9 has lr {rates[9]}"
    cfg.train.train_iters, cfg.train.global_batch_size = 12, 16
    _leg(cfg, draw.folder, 2, 0)
    cfg.train.train_iters, cfg.train.micro_batch_size = 14, 8
    _leg(cfg, draw.folder, 1, 0)
    cfg.rng.seed = 99
    said = _leg(cfg, draw.folder, 2, 2)
    assert "rng.seed=99" in said and "began with 1234" in said, said
    assert (draw.folder / "run/exit_code").read_text() == "0\n", "the refused start has changed exit_code"
    return [{"changes": 1}] * 5


def _leg(cfg: ConfigContainer, folder: Path, ranks: int, code: int) -> str:
    call = folder / "call"
    call.mkdir(exist_ok=True)
    ended = through_torchrun(ranks, run_as_user, cfg, folder=call)
    assert (ended.code == 0) == (code == 0), ended.output
    assert code != 0 or os.path.isdir(Path(cfg.logger.run_dir) / f"checkpoints/iter_{cfg.train.train_iters:07d}")
    return ended.output


def _changes(facts: Sequence[Facts]) -> str:
    changes = sum(fact["changes"] for fact in facts)
    return f"{changes} of {changes} changes were free, took effect or were refused, as the field declares"


ROWS = (
    Row(
        name="another configuration on resume",
        procedure="A run is resumed with fields changed, one at a time. Free ones leave all steps as they were; those "
        "that take effect change them, and a line says so; the others are refused with both values and the cure, and "
        "no file of the run changes. With another batch, the next sample is the one after the last that was read.",
        draw=changed,
        draws=10,
        torchrun=changed_through_torchrun,
        result=_changes,
        mutants=(
            Mutant(
                "a free field is refused",
                "megatron_kd/config/sections.py",
                "    save_interval: Free[int]",
                "    save_interval: Fixed[int]",
                told="checkpoint.save_interval was refused",
            ),
            Mutant(
                "the checkpoint's schedule wins",
                "megatron_kd/training/optimizer.py",
                "        use_checkpoint_opt_param_scheduler=False,\n        override_opt_param_scheduler=True,\n",
                "",
                told="scheduler.lr_decay_style had no effect",
            ),
            Mutant(
                "the checkpoint's learning rate wins",
                "megatron_kd/training/optimizer_state.py",
                "        group.update(own)\n",
                "        _ = own\n",
                told="optimizer.lr had no effect",
            ),
            Mutant(
                "another seed is taken for the same run",
                "megatron_kd/config/sections.py",
                "    seed: Fixed[int]",
                "    seed: Free[int]",
                told="rng.seed was not refused",
            ),
            Mutant(
                "the position in the data is counted in steps",
                "megatron_kd/training/run_checkpoint.py",
                "run.consumed_samples, run.data_order = begun.consumed_samples, begun.data_order",
                "run.consumed_samples, run.data_order = run.step * run.derived.global_batch_size, begun.data_order",
                told="the data does not continue",
            ),
            Mutant(
                "a refused start records its exit code",
                "megatron_kd/entry.py",
                "    if run_dir is not None and not holds_run(run_dir):\n",
                "    if run_dir is not None:\n        (run_dir / 'exit_code').unlink(missing_ok=True)\n",
                told="the refusal of rng.seed has changed",
            ),
        ),
        mutant_draws=(0, 1),
    ),
)
