"""Runs that are killed, and go on."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.runs import Kill, killed_run, train_on
from tests.ranks import run_ranks
from tests.reliability.reference import RUN, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config


def killed_in_a_save(draw: Draw) -> Facts:
    """Kill a rank before a random operation on files of a random save, and go on."""
    whole, operations = unbroken(draw)
    rank, step = draw.random.randrange(2), draw.random.choice((4, 6))
    part = f"iter_{step:07d}.partial"
    of_save = [name for name, path in operations[rank] if part in path]
    cfg = tiny_config(draw.folder, **RUN)
    killed_run(2, cfg, Kill(rank, None, part, draw.random.randrange(len(of_save))))
    left = bool(list((draw.folder / "checkpoints").glob(".*.partial-*")))
    resumed = run_ranks(2, train_on, cfg)[0]
    assert resumed.step > 0, "it began again"
    same_as(whole, draw.folder, 6)
    return {"partial": left, "step": resumed.step}


def _partial_folders(facts: Sequence[Facts]) -> str:
    left = sum(fact["partial"] for fact in facts)
    assert left >= 0.6 * len(facts), f"only {left} of {len(facts)} kills left a partial folder"
    return f"bitwise in all; {left} left a partial folder; went on from step {min(f['step'] for f in facts)} or later"


ROWS = (
    Row(
        name="kill -9 inside a save",
        procedure="A random rank of two is killed before a random operation on the files of a save. The same command "
        "goes on from a complete checkpoint, and has the losses and weights of the unbroken run.",
        draw=killed_in_a_save,
        draws=50,
        result=_partial_folders,
        mutants=(
            Mutant(
                "a folder gets its name before its files are written",
                "megatron_kd/checkpoints/writing.py",
                "    files = write_index(draft.plan, everyone, folder)\n",
                "    publish(folder, draft.final)\n    folder = draft.final\n"
                "    files = write_index(draft.plan, everyone, folder)\n",
                told="partial folder|set aside|began again",
            ),
        ),
    ),
)
