"""Checkpoints that are not as they were written: flipped bits, truncated, missing and foreign files."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.reading import verify
from megatron_kd.errors import CheckpointCorrupt
from tests.checkpoints.test_failures import built
from tests.faults.damage import DAMAGE, flip_bit, remove
from tests.faults.runs import train_on
from tests.ranks import run_ranks
from tests.reliability.legs import leg, run_as_user
from tests.reliability.reference import RUN, same_as, unbroken
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config

Damage = Callable[[Path, random.Random], Any]
LAST = "checkpoints/iter_0000006"
WITH_RANKS = 5  # in one of this many draws, ranks resume
SAME_IN_ALL = ("metadata.json", "run_config.yaml", "common.pt")  # one step's is as good as another's


def foreign(path: Path, draw: random.Random) -> None:
    """Put the file of the same name of an older checkpoint in a file's place."""
    shutil.copy(path.parent.with_name(f"iter_{draw.choice((2, 4)):07d}") / path.name, path)


def surplus(path: Path, draw: random.Random) -> None:
    """Add a file that was not written with the checkpoint."""
    shutil.copy(path, path.with_name(f"{path.stem}-copy{path.suffix}"))


KINDS: dict[str, Damage] = {
    **{k: f for k, f in DAMAGE.items() if k != "flip_bit"},
    "foreign": foreign,
    "surplus": surplus,
}


def flipped_bits(draw: Draw) -> Facts:
    """Flip one bit of each file of a checkpoint, one after the other; some draws have ranks resume from it."""
    return _damaged(draw, {"flip_bit": flip_bit})


def damaged_files(draw: Draw) -> Facts:
    """Damage each file of a checkpoint in each way."""
    return _damaged(draw, KINDS)


def _damaged(draw: Draw, kinds: dict[str, Damage]) -> Facts:
    whole, _ = unbroken(draw)
    run_dir = Path(shutil.copytree(whole, draw.folder / "run"))
    names, refused = sorted(path.name for path in (run_dir / LAST).iterdir()), 0
    for name in names:
        for damage in kinds.values():
            refused += _refused(run_dir / LAST, name, damage, draw.random)
            shutil.rmtree(run_dir / LAST)
            shutil.copytree(whole / LAST, run_dir / LAST)
    with_ranks = draw.number % WITH_RANKS == 0
    if with_ranks:
        # Tensors first: their content is all that tells a flipped bit of theirs.
        some = [name for name in names if (name not in SAME_IN_ALL if draw.number else name.endswith(".distcp"))]
        _resumed(run_dir, whole, draw.random.choice(some), draw.random.choice(list(kinds.values())), draw.random)
    return {"refused": refused, "resumed": int(with_ranks)}


def _refused(folder: Path, name: str, damage: Damage, random: random.Random) -> bool:
    """Damage a file, and see the checkpoint refused; false where that has changed nothing, as it may be."""
    before = _content(folder)
    damage(folder / name, random)
    if _content(folder) == before:
        assert damage is foreign and name in SAME_IN_ALL, f"{name}, {damage.__name__}: the fault did not hit"
        return False
    try:
        verify(folder)
    except CheckpointCorrupt as error:
        told = str(error)
    else:
        raise AssertionError(f"{name}, {damage.__name__}: was not refused")
    gone = damage is remove and name == "manifest.json"  # then the folder is named, and what it lacks
    stem = name if damage is not surplus else Path(name).stem
    assert f"{folder}/{stem}" in told or (gone and name in told), f"{name}, {damage.__name__}: not named in: {told}"
    return True


def _content(folder: Path) -> dict[str, tuple[bool, bytes]]:
    return {path.name: (path.is_symlink(), path.read_bytes()) for path in folder.iterdir()}


def weights_hash(run: Any) -> list[int]:
    """Of a rank's students."""
    import torch

    state = {k: v for s in run.students for k, v in s.state_dict().items() if isinstance(v, torch.Tensor)}
    return [hash(state[key].contiguous().view(torch.uint8).numpy().tobytes()) for key in sorted(state)]


def asked_for(cfg: Any) -> str:
    """On a rank: resume the step that is asked for, and say what it was refused with; the weights must not change."""
    from megatron_kd.training.resume import find_begun, resume
    from megatron_kd.training.train import train

    with built(cfg) as run:
        before = weights_hash(run)
        with contextlib.suppress(CheckpointCorrupt):
            resume(run, find_begun(cfg))
        assert weights_hash(run) == before, "weights changed before the checkpoint was verified"
    try:
        train(cfg)
    except CheckpointCorrupt as error:
        return str(error)
    raise AssertionError("a damaged checkpoint was resumed from, since it was asked for")


def refused_then_resumed(asked: Any, auto: Any) -> tuple[str, Any]:
    """On a rank: `asked_for`, and then the newest that can be read."""
    return asked_for(asked), train_on(auto)


def _resumed(run_dir: Path, whole: Path, name: str, damage: Damage, random: random.Random) -> None:
    assert _refused(run_dir / LAST, name, damage, random)
    ranks = run_ranks(2, refused_then_resumed, tiny_config(run_dir, resume=6, **RUN), tiny_config(run_dir, **RUN))
    assert ranks[0][0] == ranks[1][0], "the ranks have other verdicts"
    for told, resumed in ranks:
        assert str(run_dir / LAST) in told
        assert resumed.step == 4, f"resumed from {resumed.step}"
        assert len(resumed.notes) == 1 and told in resumed.notes[0], "did not say what was refused"
    same_as(whole, run_dir, 6)


def _through_torchrun(draw: Draw, kinds: Sequence[Damage]) -> list[Facts]:
    """One run folder, whose newest checkpoint is damaged before each of the starts that follow."""
    whole, _ = unbroken(draw)
    cfg = tiny_config(draw.folder / "run", **RUN)
    folder = draw.folder / "run" / LAST
    leg(run_as_user, cfg, code=0)
    facts = []
    for damage in kinds:
        name = draw.random.choice(
            [path.name for path in folder.iterdir() if path.suffix in (".distcp", ".pt", ".json")]
        )
        damage(folder / name, draw.random)
        output = leg(run_as_user, cfg, code=0)
        assert f"warning: the checkpoint of step 6 was refused: {folder}" in output, output
        assert "continues from" in output and "at step 4 of 6" in output, output
        facts.append({"refused": 1, "resumed": 1})
    same_as(whole, draw.folder / "run", 6)
    return facts


def flipped_through_torchrun(draw: Draw) -> list[Facts]:
    """Flip a bit before each of five starts."""
    return _through_torchrun(draw, [flip_bit] * 5)


def damaged_through_torchrun(draw: Draw) -> list[Facts]:
    """Another damage before each of five starts."""
    return _through_torchrun(draw, [DAMAGE["truncate"], DAMAGE["remove"], DAMAGE["append"], DAMAGE["link"], surplus])


def _all_refused(facts: Sequence[Facts]) -> str:
    refused, resumed = (sum(fact[name] for fact in facts) for name in ("refused", "resumed"))
    return f"{refused:,} of {refused:,} refused by the file's name; {resumed} runs resumed from the one before, bitwise"


ROWS = (
    Row(
        name="flipped bit in each file",
        procedure="One random bit of each file of a checkpoint is flipped, one file after the other. It is refused, "
        "with the file named. In some draws two ranks then start: where that step was asked for, that is an error "
        "before any weight changes; with resume=auto the run reports it and resumes from the one before, bitwise.",
        draw=flipped_bits,
        draws=20,
        torchrun=flipped_through_torchrun,
        result=_all_refused,
        mutants=(
            Mutant(
                "sizes are compared, hashes are not",
                "megatron_kd/runtime/files.py",
                "        if sha256_of(path) != record.sha256:\n",
                "        if record.sha256 == '':\n",
                told="was not refused",
            ),
            Mutant(
                "a manifest does not verify itself",
                "megatron_kd/checkpoints/manifest.py",
                "    if not intact:\n",
                "    if intact is None:\n",
                told="manifest.json.*(was not refused|not named)",
            ),
            Mutant(
                "weights are read before the checkpoint is verified",
                "megatron_kd/training/resume.py",
                "        checkpoint = verify(found[int(wanted)])\n",
                "        from megatron_kd.checkpoints.reading import opened\n\n"
                "        checkpoint = opened(found[int(wanted)])\n",
                told="weights changed before",
            ),
        ),
        mutant_draws=(0, 5, 10, 15),
    ),
    Row(
        name="truncated, missing, foreign files",
        procedure="Each file of a checkpoint is cut off, removed, appended to, replaced by a link, replaced by that "
        "of another step, or given a neighbour that does not belong there. What must hold is as for flipped bits.",
        draw=damaged_files,
        draws=10,
        torchrun=damaged_through_torchrun,
        result=_all_refused,
        mutants=(
            Mutant(
                "files beside those of the manifest pass",
                "megatron_kd/checkpoints/reading.py",
                "    if foreign := strangers(folder, manifest):\n",
                "    if foreign := strangers(folder, manifest)[:0]:\n",
                told="surplus: was not refused",
            ),
            Mutant(
                "links are followed",
                "megatron_kd/runtime/files.py",
                "        found = os.lstat(path)\n",
                "        found = os.stat(path)\n",
                told="link: was not refused",
            ),
            Mutant(
                "a refused checkpoint is not reported",
                "megatron_kd/training/resume.py",
                '        notes.append(f"warning: the checkpoint of step {step} was refused: {why}{kept}")\n',
                "        notes.append(kept)\n",
                told="did not say what was refused",
            ),
        ),
    ),
)
