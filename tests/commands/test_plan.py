"""`megatron-kd plan`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kd.commands.cli import main
from megatron_kd.commands.plan import memory_bytes
from megatron_kd.planning.memory import PARTS
from tests.config.base import RECIPE

ROOT = Path(__file__).resolve().parents[2]
LLAMA = str(ROOT / "recipes/llama/distill_llama31_70b-8b.py")
BATCH = "train.global_batch_size=64"


def test_a_large_run_is_planned_without_weights_data_or_torch() -> None:
    words = ["plan", LLAMA, "--gpus", "64", "--memory", "80GB", "--", BATCH]
    code = f"import sys; from megatron_kd.commands.cli import main; code = main({words[:-2] + words[-1:]!r}); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("70.6 B -> 8.0 B on 64 GPUs, 8 a machine; student TP 2 x PP 1 x DP 32, bf16\n")
    for words_of_row in (*PARTS, "host memory a machine", "pipeline bubble", "fits in 90% of 80 GB", "2 N_t"):
        assert words_of_row in result.stdout
    assert "colocated does not support this: model.tensor_model_parallel_size=2" in result.stdout
    assert "auto takes balanced: the fastest of those that fit" in result.stdout


def test_memory_comes_from_the_configuration_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", LLAMA, "--gpus", "64", BATCH]
    assert main([*words, "dist.device_memory_gb=80"]) == 0
    assert "fits in 90% of 80 GB" in capsys.readouterr().out
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "fits in" not in out
    assert "the device's memory is unknown" in out


def test_the_default_is_one_copy_of_the_student(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["plan", LLAMA, BATCH]) == 0
    assert "on 2 GPUs, 2 a machine" in capsys.readouterr().out


def test_bad_input_is_told_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpus", "3", "--memory", "much", "--gpus-per-machine", "0", "model.hiden_size=1", "model.vocab_size=0"]
    assert main(["plan", LLAMA, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    for part in (
        "--memory much: must be a size such as 80GB",
        "--gpus-per-machine 0: must be 1 or more",
        "model.hiden_size: unknown key; did you mean model.hidden_size?",
        "model.vocab_size=0: must be greater than 0",
        "one copy of the model takes 2 ranks, and 3 are not a multiple",
    ):
        assert part in err, part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=null", "set model.vocab_size=N"),
        ("model.teacher.seq_length=64", "both models read the same tokens; set model.teacher.seq_length="),
    ],
)
def test_what_a_plan_must_know(capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert main(["plan", str(RECIPE), "tokenizer={tokenizer_type: huggingface, vocab_size: null}", override]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_without_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes/tiny/pretrain_tiny.py"), "model.vocab_size=2048"]) == 2
    assert "has no teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("80", 80e9), ("74.5GiB", 74.5 * 2**30), (" 512 mb", 512e6), ("1TB", 1e12)]
)
def test_sizes(text: str, size: float) -> None:
    assert memory_bytes(text) == size
