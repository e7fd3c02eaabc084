"""The users' command lines on the tiny recipe, with torchrun and without; repetitions on ranks that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.training.pace import MEASURED_TIMES
from tests.hooks import On
from tests.ranks import run_ranks
from tests.recipes.launch import checkout, run, run_recipe, torchrun
from tests.tiny import read_metrics

RECIPE = "recipes/tiny/distill_tiny.py"
TOKENIZER = "tokenizer.tokenizer_model=tokenizer"
SHORT = ["validation.eval_iters=1", "logger.tensorboard=false", "model.seq_length=32", "model.teacher.seq_length=32"]
FLAGS = [
    *("--teacher_path", "teacher"),
    *("--student_config", "config/student_config.json"),
    *("--data_path", "data/static_prompts.txt"),
    *("--output_dir", "./outputs/t2i"),
    *("--batch_size", "2"),
    *("--num_epochs", "0.25"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with prompts, a tokenizer, a teacher of two steps and a student's sizes."""
    folder = checkout(tmp_path_factory.mktemp("user"))
    prompts = [f"prompt {number}: {number % 9} cats on a mat of {number % 5} colours" for number in range(400)]
    for name in ("data", "config"):
        (folder / name).mkdir()
    (folder / "data/static_prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    train_byte_bpe(prompts, 300, folder / "tokenizer")
    (folder / "config/student_config.json").write_text('{"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 64}')
    words = ["--data-path", "data/static_prompts.txt", "--output-dir=teacher", "--gradient-checkpointing", *SHORT[:-1]]
    script = "recipes/tiny/pretrain_tiny.py"
    assert run_ranks(1, run_recipe, script, [*words, TOKENIZER, "train.train_iters=2"], folder) == [0]
    return folder


def losses(run_dir: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in MEASURED_TIMES} for record in read_metrics(run_dir)]


def run_saved(words: list[str], cwd: Path) -> int:
    """On a rank: `-m megatron_kd.run` with a command line."""
    from megatron_kd.run import main

    os.chdir(cwd)
    return main(words)


@pytest.mark.slow
def test_the_documented_command_and_the_same_run_without_its_flags(folder: Path) -> None:
    flags = [*FLAGS, "--teacher_device_strategy", "auto", "--distributed", TOKENIZER, *SHORT]
    result = torchrun(2, RECIPE, *flags, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("tokenised data/static_prompts.txt") == 1  # by one rank
    out = folder / "outputs/t2i"
    config = yaml.safe_load((out / "run_config.yaml").read_text())
    tokens = json.loads((out / "data/static_prompts.tokenised.json").read_text())["tokens"]
    assert config["train"]["micro_batch_size"] == 2
    assert config["train"]["global_batch_size"] == 4  # on two ranks
    steps = config["train"]["train_iters"]
    assert 0 < steps <= tokens * 0.25 / (4 * 32)
    assert config["model"]["num_layers"] == 1
    assert losses(out)[-1]["step"] == steps
    assert (out / f"checkpoints/iter_{steps:07d}").is_dir()

    # Its saved file is the same run: without the text, its folder's tokens unchanged.
    made = (out / "data/static_prompts.bin").stat().st_ino
    os.rename(folder / "data/static_prompts.txt", folder / "data/away.txt")
    try:
        words = [str(out / "run_config.yaml"), "--output_dir=again"]
        assert run_ranks(2, run_saved, words, folder) == [0, 0]
    finally:
        os.rename(folder / "data/away.txt", folder / "data/static_prompts.txt")
    assert losses(folder / "again") == losses(out)

    # The same command again continues, which here is to do nothing, and finds its tokens.
    assert run_ranks(2, run_recipe, RECIPE, flags, folder) == [0, 0]
    assert losses(out) == losses(folder / "again")
    assert (out / "data/static_prompts.bin").stat().st_ino == made


@pytest.mark.slow
def test_plain_python_is_one_rank(folder: Path) -> None:
    words = [*FLAGS, "--teacher_dtype", "float32", "--gradient_checkpointing", "--output_dir", "outputs/one"]
    result = run([RECIPE, *words, "--teacher_device_strategy", "colocated", TOKENIZER, *SHORT], folder)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((folder / "outputs/one/run_config.yaml").read_text())
    assert config["train"]["global_batch_size"] == 2
    assert config["model"]["recompute_granularity"] == "full"
    assert "TP 1 x PP 1 x DP 1" in result.stdout + result.stderr


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    words = ["--teacher_on_cpu", "--balance_teacher", "--batchsize", "2", "--student_config", "no.json"]
    result = run([RECIPE, *words, "--output-dir", "out"], checkout(tmp_path))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for line in ("--teacher_on_cpu, --balance_teacher: contradict", "did you mean --batch_size?", "no.json: cannot be"):
        assert line in result.stderr
    assert (tmp_path / "out/exit_code").read_text() == "2\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["exit_code"]


def test_help_lists_the_flags(tmp_path: Path) -> None:
    result = run([RECIPE, "--help"], checkout(tmp_path))
    assert result.returncode == 0
    assert "--teacher_device_strategy NAME" in result.stdout
    assert result.stderr == ""


# The command lines of the users' guide, `...` standing for the flags that all of them share.
GUIDE = {
    "cpu": (4, "--teacher_device_strategy cpu --distributed"),
    "balanced": (4, "--teacher_device_strategy balanced --distributed"),
    "gpu0": (4, "--teacher_device_strategy gpu0 --distributed"),
    "auto": (4, "--teacher_device_strategy auto --distributed"),
    "auto by default": (4, "--distributed"),
    "the old flag": (4, "--teacher_on_cpu --distributed"),
    "balanced in half precision": (4, "--teacher_device_strategy balanced --teacher_dtype float16 --distributed"),
    "cpu with recompute": (4, "--teacher_device_strategy cpu --gradient_checkpointing --distributed"),
    "the least memory": (
        4,
        "--teacher_device_strategy cpu --teacher_dtype float16 --gradient_checkpointing --batch_size 1 --distributed",
    ),
    "one rank": (1, "--teacher_dtype float16"),
    "spread, by the older documents": (4, "--balance_teacher"),
    "shared, by the older documents": (4, "--teacher_on_cpu --share_teacher"),
    "on another rank": (4, "--teacher_device_strategy gpu0 --teacher_rank 3"),
}


def start_recipe(folder: Path, words: list[str]) -> tuple[int, str]:
    """On a rank: what the recipe does with a command line; its exit code and where the teacher was."""
    from megatron_kd import entry
    from megatron_kd.resolve.recipe_files import load_recipe

    os.chdir(folder)
    hook = On()
    code = entry.main(load_recipe(Path(RECIPE)), words, hooks=[hook])
    return code, hook.run.teacher.strategy


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDE)
def test_the_commands_of_the_guide(name: str, folder: Path) -> None:
    world_size, flags = GUIDE[name]
    shared = ["--teacher_path", "teacher", "--student_config", "config/student_config.json", *SHORT, TOKENIZER]
    data = ["--data_path", "data/static_prompts.txt", "--output_dir", f"outputs/{name}", "--num_epochs", "0.25"]
    if "--batch_size" not in flags:
        data += ["--batch_size", "2"]
    results = run_ranks(world_size, start_recipe, folder, [*shared, *data, *flags.split()], timeout=180)
    wanted = next((s for s in ("gpu0", "balanced", "cpu") if f"strategy {s}" in flags), None)
    wanted = wanted or ("cpu" if "on_cpu" in flags else "balanced" if "balance_teacher" in flags else None)
    for code, strategy in results:
        assert code == 0
        assert wanted is None or strategy == wanted
    records = losses(folder / f"outputs/{name}")
    assert records[-1]["split"] == "validation" and records[-1]["logits_loss"] > 0
