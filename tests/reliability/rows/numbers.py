"""Steps with non-finite values, and steps in which no token counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_kd.config.container import ConfigContainer
from tests.faults.batches import read_through
from tests.faults.numbers import Poison, Poisoned, masked_run, masking, poisoned_run, same
from tests.faults.runs import train_on
from tests.ranks import run_ranks
from tests.reliability.legs import leg, run_as_user, unbroken_end
from tests.reliability.reference import RUN, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import read_metrics, tiny_config

STEPS, BATCH = 6, 8
EACH_STEP = {**RUN, "save_interval": 1}


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Of faults.jsonl."""
    return [json.loads(line) for line in (run_dir / "faults.jsonl").read_text().splitlines()]


def samples_of(poison: Poison) -> dict[str, list[int]]:
    """Whose samples a poison is reported with: those of the rank, or of all where only the gradient is wrong."""
    first = (poison.step - 1) * BATCH
    ranks = (0, 1) if poison.where == "gradient" else (poison.rank,)
    return {str(r): list(range(first + r * BATCH // 2, first + (r + 1) * BATCH // 2)) for r in ranks}


def reported(run_dir: Path, poisons: Sequence[Poison]) -> None:
    """Check what faults.jsonl says of them."""
    told = [(r["step"], r["outcome"], r["sample_ids_by_rank"]) for r in records(run_dir)]
    expected = [(p.step, "persistent" if p.times > 1 else "transient", samples_of(p)) for p in poisons]
    assert told == expected, f"faults.jsonl says {told} instead of {expected}"


def met_and_refused(draw: Draw, poisons: Sequence[Poison]) -> int:
    """Run with faults, the last of them persistent, and resume without faults."""
    whole, _ = unbroken(draw)
    cfg = tiny_config(draw.folder, **RUN)
    ranks, last = run_ranks(2, poisoned_run, cfg, poisons), poisons[-1]
    said = f"step {last.step} was not taken: "
    for _, told, unchanged in ranks:
        right = told.startswith(said) and last.where in told and "samples " in told
        assert right, f"the run says {told!r}, not '{said}', the {last.where} and its samples"
        assert unchanged, "the weights changed in a step that was not taken"
    hits = sum(hits for hits, _, _ in ranks)
    assert hits == sum(poison.times for poison in poisons), "a fault did not hit"
    reported(draw.folder, poisons)
    resumed = run_ranks(2, train_on, cfg)[0]
    assert resumed.step == (last.step - 1) // 2 * 2
    same_as(whole, draw.folder, STEPS)
    return hits


def nan_student(draw: Draw) -> Facts:
    """A rank's student outputs NaN twice, or has NaN gradients twice."""
    poison = Poison(
        draw.random.randint(1, STEPS), ("student", "gradient")[draw.number % 2], draw.random.randrange(2), 2
    )
    return {"hits": met_and_refused(draw, [poison])}


def nan_teacher(draw: Draw) -> Facts:
    """A rank's teacher outputs NaN twice."""
    return {
        "hits": met_and_refused(draw, [Poison(draw.random.randint(1, STEPS), "teacher", draw.random.randrange(2), 2)])
    }


def transient_and_persistent(draw: Draw) -> Facts:
    """Two transient faults, gone on the second attempt, and a persistent one."""
    steps = sorted(draw.random.sample(range(1, STEPS + 1), 3))
    wheres = draw.random.choices(("student", "teacher", "gradient"), k=3)
    ranks = draw.random.choices((0, 1), k=3)
    poisons = [Poison(*what, times) for *what, times in zip(steps, wheres, ranks, (1, 1, 2), strict=True)]
    return {"hits": met_and_refused(draw, poisons)}


def poison_as_user(cfg: ConfigContainer, poisons: Sequence[Poison]) -> int:
    """On a rank: `run_as_user` with NaNs."""
    import os

    hook = Poisoned(poisons)
    code = run_as_user(cfg, hook)
    assert hook.hits == sum(poison.times for poison in poisons if poison.rank == int(os.environ["RANK"]))
    assert hook.unchanged, "the weights changed in a step that was not taken"
    return code


def _legs(draw: Draw, wheres: Sequence[str]) -> list[Facts]:
    whole, _ = unbroken(draw)
    cfg, run_dir = tiny_config(draw.folder / "run", **EACH_STEP), draw.folder / "run"
    poisons = [Poison(step, where, draw.random.randrange(2), 2) for step, where in enumerate(wheres, 2)]
    for poison in poisons:
        output = leg(poison_as_user, cfg, [poison], code=17)
        assert output.count(f"step {poison.step} was not taken: ") == 2, output  # by each rank
    reported(run_dir, poisons)
    unbroken_end(cfg)
    same_as(whole, run_dir, STEPS)
    return [{"hits": 2}] * len(wheres)


def student_through_torchrun(draw: Draw) -> list[Facts]:
    """Each of five starts ends at its second step."""
    return _legs(draw, ["student", "gradient", "student", "gradient", "student"])


def teacher_through_torchrun(draw: Draw) -> list[Facts]:
    """Each of five starts ends at its second step."""
    return _legs(draw, ["teacher"] * 5)


def transient_through_torchrun(draw: Draw) -> list[Facts]:
    """Five faults that pass in one run, then one that lasts, and a start without."""
    whole, _ = unbroken(draw)
    cfg, run_dir = tiny_config(draw.folder / "run", **RUN), draw.folder / "run"
    wheres = ("student", "teacher", "gradient", "student", "teacher", "student")
    poisons = [Poison(s, where, draw.random.randrange(2), 1 + (s == STEPS)) for s, where in enumerate(wheres, 1)]
    leg(poison_as_user, cfg, poisons, code=17)
    reported(run_dir, poisons)
    unbroken_end(cfg)
    same_as(whole, run_dir, STEPS)
    return [{"hits": poison.times} for poison in poisons]


MASKED: dict[str, dict[str, Any]] = {
    "DP2": {"micro_batch_size": 4}, "TP2": {"tp": 2}, "PP2": {"pp": 2, "micro_batch_size": 4},
}  # fmt: skip


def masked_and_compared(cfg: ConfigContainer, reference: ConfigContainer, step: int) -> bool:
    """On a rank: whether a step that counts no token has done to the weights what one without gradients does."""
    return same(masked_run(cfg, step, masked=True), masked_run(reference, step, masked=False))


def all_masked(draw: Draw) -> Facts:
    """All tokens of a random step are masked, on all ranks."""
    step, layout = draw.random.randint(1, 4), list(MASKED.values())[draw.number % len(MASKED)]
    kd = {"skip_lm_loss": False}
    configs = [tiny_config(draw.folder / name, iters=5, kd=kd, **layout) for name in ("masked", "reference")]
    assert all(run_ranks(2, masked_and_compared, *configs, step)), "other weights than after a step without gradients"
    return _counted_nothing(draw.folder / "masked", [step], 5)


def _counted_nothing(run_dir: Path, steps: Sequence[int], last: int) -> Facts:
    lines = [record for record in read_metrics(run_dir) if record["split"] == "train"]
    assert [record["step"] for record in lines] == list(range(1, last + 1)), "the run did not continue"
    for record in lines:
        nothing = record["step"] in steps
        assert all(value == value and abs(value) < 1e9 for value in record.values() if isinstance(value, float)), record
        assert (record["loss"] == 0) == (record["grad_norm"] == 0) == (record["tokens"] == 0) == nothing, record
    return {"masked": len(steps)}


def mask_as_user(cfg: ConfigContainer, step: int) -> int:
    """On a rank: `run_as_user` with a step that counts no token."""
    with read_through(masking(step)):
        return run_as_user(cfg)


def masked_through_torchrun(draw: Draw) -> list[Facts]:
    """Another step of five runs counts no token."""
    facts = []
    for step in range(1, 6):
        folder = draw.folder / str(step)
        layout = list(MASKED.values())[step % len(MASKED)]
        leg(mask_as_user, tiny_config(folder, iters=step + 1, kd={"skip_lm_loss": False}, **layout), step, code=0)
        facts.append(_counted_nothing(folder, [step], step + 1))
    return facts


def _hits(facts: Sequence[Facts]) -> str:
    hits = sum(fact["hits"] for fact in facts)
    return f"{hits} of {hits} faults found, with their samples; no weight changed, and all resumed bitwise"


def _masked_steps(facts: Sequence[Facts]) -> str:
    return f"{sum(fact['masked'] for fact in facts)} steps with loss 0 and gradient 0; all runs continued"


ROWS = (
    Row(
        name="NaN student",
        procedure="In a random step a random rank's student, or a gradient of it, is NaN, twice. All ranks end with "
        "17 at that step, name the samples, and have the weights before it to the last bit; the same command then "
        "resumes.",
        draw=nan_student,
        draws=10,
        torchrun=student_through_torchrun,
        result=_hits,
        mutants=(
            Mutant(
                "a non-finite gradient norm is applied",
                "megatron_kd/training/update.py",
                "    if not math.isfinite(norm):\n",
                "    if norm is None:\n",
                told="the run says .*, not 'step",
            ),
            Mutant(
                "samples of all ranks are blamed for one's",
                "megatron_kd/training/fault_records.py",
                "    if found:\n        return found\n",
                "",
                told="faults.jsonl says",
            ),
        ),
    ),
    Row(
        name="NaN teacher",
        procedure="As above, of the teacher on one rank.",
        draw=nan_teacher,
        draws=8,
        torchrun=teacher_through_torchrun,
        result=_hits,
        mutants=(
            Mutant(
                "the faults that the losses found are ignored",
                "megatron_kd/training/forward_pass.py",
                "    met = [fault for fault in FAULTS if values.pop(fault)]\n",
                "    met = [fault for fault in FAULTS if values.pop(fault) < 0]\n",
                told="the run says .*, not 'step",
            ),
        ),
    ),
    Row(
        name="all-masked batch",
        procedure="No token of a random step counts, at two data-parallel, tensor-parallel or pipeline ranks. Loss "
        "and gradient are 0, the weights those after a step whose gradients were set to 0, to the last bit, and the "
        "run continues with finite losses.",
        draw=all_masked,
        draws=9,
        torchrun=masked_through_torchrun,
        result=_masked_steps,
        mutants=(
            Mutant(
                "a batch without tokens is divided by their number",
                "megatron_kd/training/forward_pass.py",
                "value / max(tokens, 1)",
                "value / tokens",
                told="ZeroDivisionError",
            ),
        ),
    ),
    Row(
        name="transient and persistent faults",
        procedure="Two random steps have a NaN in student, teacher or gradient that is gone on the second attempt, a "
        "third step one that persists. The first two leave a record and nothing else: losses and weights are those of "
        "the uninterrupted run, bitwise; the third ends all ranks with 17 and its samples; the same command resumes.",
        draw=transient_and_persistent,
        draws=10,
        torchrun=transient_through_torchrun,
        result=_hits,
        mutants=(
            Mutant(
                "the second attempt draws other random numbers",
                "megatron_kd/training/step.py",
                "            set_random_state(before)\n",
                "            _ = before, set_random_state\n",
                told="other losses|other weights",
            ),
            Mutant(
                "a fault that passed is not recorded",
                "megatron_kd/training/step.py",
                "                record_transient_fault(run, first)\n",
                "                pass\n",
                told="faults.jsonl says",
            ),
        ),
    ),
)
