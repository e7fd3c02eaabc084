"""Teachers and students that do not match."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kd.config.sections import TokenizerConfig
from tests.config.fresh import errors_of
from tests.config.mismatches import MODELS, checkpoints, copied, layouts, mismatches, pairs, vocabularies
from tests.config.written import as_words
from tests.reliability.reference import made_once
from tests.reliability.refusals import refused
from tests.reliability.row import Draw, Facts, Mutant, Row
from tests.tiny import tiny_config


def unfit(draw: Draw) -> Facts:
    """Each of the mismatches, with numbers of the draw, alone; and two tokenizers."""
    cases = mismatches(draw.random, draw.folder)
    told = errors_of([as_words({**MODELS, **edits}) for edits, _ in cases])
    for (edits, words), lines in zip(cases, told, strict=True):
        tells_both(edits, words, lines)
    _, size = made_once(draw, "tokenizer", make_tokenizer)
    tokenizers(draw, draw.shared / "tokenizer", size)
    return {"cases": len(cases) + 1}


def tells_both(edits: Mapping[str, Any], words: Sequence[str], lines: Sequence[str]) -> None:
    """Check that one line names both sides and the cure."""
    found = [line for line in lines if all(word in line for word in words)]
    assert len(found) == 1, f"{len(found)} errors instead of 1 name both sides of {edits}: {lines}"


def make_tokenizer(folder: Path) -> int:
    """A byte-level BPE; returns the number of its ids."""
    from megatron_kd.data.tokens.byte_bpe import train_byte_bpe

    return train_byte_bpe([Path(__file__).read_text()], 300, folder)


def tokenizers(draw: Draw, student: Path, size: int) -> None:
    """Exchange two random tokens in the teacher's tokenizer: refused before ranks meet and tensors are made."""
    from unittest import mock

    from megatron_kd.errors import ConfigError
    from megatron_kd.training.train import train
    from tools.bench.allocations import AllocationCounter

    teacher = Path(shutil.copytree(student, draw.folder / "teacher"))
    content = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    first, second = draw.random.sample(sorted(names), 2)
    vocabulary[names[first]], vocabulary[names[second]] = second, first
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    cfg = tiny_config(draw.folder / "run", student={"vocab_size": size}, teacher={"vocab_size": size + 8})
    cfg.tokenizer = TokenizerConfig(tokenizer_model=str(student), teacher_tokenizer_model=str(teacher))
    told = ""
    too_late = mock.patch(
        "megatron_kd.training.starting.running_ranks", side_effect=AssertionError("ranks were started")
    )
    with too_late, AllocationCounter() as counter:
        try:
            train(cfg)
        except ConfigError as error:
            told = str(error)
    assert f"2 of the {size} ids that both models have stand for different tokens: {min(first, second)} is" in told
    assert all(f"={folder}" in told for folder in (student, teacher)), told
    assert counter.peak_bytes == 0, f"{counter.peak_bytes} bytes were allocated"


def unfit_through_torchrun(draw: Draw) -> list[Facts]:
    """Five of the mismatches, of different kinds."""
    kinds = [*(kind(draw.random) for kind in (layouts, pairs, copied, vocabularies))]
    kinds.append(checkpoints(draw.random, draw.folder / "saved"))
    for number, kind in enumerate(kinds):
        edits, words = draw.random.choice(kind)
        tells_both(edits, words, refused(draw.folder / str(number), as_words({**MODELS, **edits})))
    return [{"cases": 1}] * len(kinds)


def _unfit(facts: Sequence[Facts]) -> str:
    cases = sum(fact["cases"] for fact in facts)
    return f"{cases} of {cases} refused with one error that names both sides, before a weight was allocated"


ROWS = (
    Row(
        name="teacher and student that do not match",
        procedure="Layouts, layer pairs, architectures to copy, vocabularies and checkpoints of other sizes, with "
        "random numbers: one error names both sides and a cure, before torch is imported. Tokenizers in which two "
        "tokens are exchanged are reported before ranks connect, with no byte of a tensor allocated.",
        draw=unfit,
        draws=8,
        torchrun=unfit_through_torchrun,
        result=_unfit,
        mutants=(
            Mutant(
                "a teacher's layout is not compared with the student's",
                "megatron_kd/placement/colocated.py",
                "if getattr(model, name) != getattr(model.teacher, name):",
                "if getattr(model, name) is None:",
                told="errors instead of 1 name both sides",
            ),
            Mutant(
                "a checkpoint's sizes are not checked before it is read",
                "megatron_kd/checks/weight_origins.py",
                "        if getattr(wanted, name) != size:\n",
                "        if size is None:\n",
                told="errors instead of 1 name both sides",
            ),
            Mutant(
                "tokenizers are not compared",
                "megatron_kd/data/tokens/shared_ids.py",
                "    if not wrong:\n",
                "    if wrong or not wrong:\n",
                told="ranks were started",
            ),
        ),
    ),
)
