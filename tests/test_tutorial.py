"""The tutorial's commands, one after the other in one folder, on less text and for fewer steps."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.recipes.launch import ROOT, checkout, run
from tests.test_readme import commands_in, write_files_of

TUTORIAL = ROOT / "docs" / "tutorial.md"
FEW_STEPS = ["train.train_iters=4", "validation.eval_iters=1"]


def run_line(words: tuple[str, ...], folder: Path) -> str:
    """Run one command of the tutorial, shortened, and return what it printed."""
    program, *rest = words
    if program == "make":
        sources = Path(sysconfig.get_paths()["stdlib"]) / "asyncio"  # some thirty files
        rest = [str(ROOT / "tools/make_corpus.py"), "--output", "data/stdlib", "--vocab-size", "300"]
        line = [*rest, "--source", str(sources)]
    elif program == "torchrun":
        line = ["-m", "torch.distributed.run", "--standalone", *rest, *FEW_STEPS]
    else:
        line = ["-m", "megatron_kd.commands.cli", *rest]
    result = run(line, folder)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-2000:]}{result.stderr[-4000:]}"
    return result.stdout


@pytest.mark.slow
def test_every_command_works_on_what_those_before_it_made(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    write_files_of(TUTORIAL, folder)
    printed = {command.words[:2]: run_line(command.words, folder) for command in commands_in(TUTORIAL)}
    assert "teacher_top1_agreement" in printed["megatron-kd", "evaluate"]
    assert "import " in printed["megatron-kd", "generate"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    (student,) = (folder / "runs/tutorial/student/hf").iterdir()
    shutil.rmtree(folder / "models")  # the student stands on its own
    tokens = AutoTokenizer.from_pretrained(student)("import ", return_tensors="pt")
    text = AutoModelForCausalLM.from_pretrained(student).generate(**tokens, max_new_tokens=4)
    assert text.shape[1] == tokens["input_ids"].shape[1] + 4
