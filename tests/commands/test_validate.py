"""`megatron-kd validate`, in its own process where its exit code, its streams and its speed count."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_kd.commands.cli import main
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from tests.config.base import DOCUMENTED_YAML, RECIPE

ROOT = Path(__file__).resolve().parents[1]


def test_validate_prints_the_resolved_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text(DOCUMENTED_YAML)
    words = ["model.num_layers=2", "--world-size", "4", "--config-file", str(file), "~model.hidden_size"]
    assert main(["validate", str(RECIPE), *words]) == 0
    out, err = capsys.readouterr()
    printed = yaml.safe_load(out)
    assert err.startswith("not checked: memory of the devices") and err.count("\n") == 1
    assert printed["model"]["num_layers"] == 2
    assert printed["model"]["hidden_size"] == 128
    assert printed["model"]["kd_config"]["logit_kl_temperature"] == 2.0
    (tmp_path / "run.yaml").write_text(out)
    assert main(["validate", f"--config-file={tmp_path / 'run.yaml'}", str(RECIPE)]) == 0
    assert capsys.readouterr().out == out


def test_validate_lists_all_problems_at_once_and_fast() -> None:
    words = ["model.hiden_size=8", "train.global_batch_size=7", "model.tensor_model_parallel_size=3", "--bad", "+a=(1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-m", "megatron_kd.commands.cli", "validate", str(RECIPE), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # its own seconds, however busy the machine is
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert len(lines) == len(set(lines))
    for field in (
        "model.hiden_size: unknown key; did you mean model.hidden_size?",
        "train.global_batch_size=7",
        "model.num_attention_heads=8, model.tensor_model_parallel_size=3",
        "--bad: unknown option",
        "+a=(1: cannot be read",
    ):
        assert field in result.stderr


def errors_of(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_the_number_of_ranks_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = errors_of(capsys, "validate", str(RECIPE), "--world-size=3")
    assert "3 data-parallel ranks" in line
    (line,) = errors_of(capsys, "validate", str(RECIPE), "--world-size", "0")
    assert line.startswith("error: --world-size 0")


def test_a_recipe_that_does_not_exist_names_near_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes" / "llama").mkdir(parents=True)
    (tmp_path / "recipes" / "llama" / "distill_a-b.py").write_text('"""One."""\ndef recipe(): ...\n')
    monkeypatch.chdir(tmp_path)
    for wrong in ("recipes/llama/distil_a-b.py", "examples/recipes/llama/distill_a-b.py"):
        (line,) = errors_of(capsys, "validate", wrong)
        assert line == f"error: {wrong}: there is no such recipe; did you mean recipes/llama/distill_a-b.py?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module\n", ["cannot be imported", "No module named 'no_such_module'", "(line 1)"]),
        ("x = 1\ndef recipe(:\n", ["cannot be imported", "SyntaxError", "(line 2)"]),
        ("x = 1\n", ["defines no recipe", "def recipe()"]),
        ("def recipe():\n    return 3\n", ["must return a ConfigContainer", "a int"]),
        (
            "from megatron_kd import GPTModelProvider\ndef recipe():\n    return GPTModelProvider(hiden_size=3)\n",
            ["the recipe fails", "hiden_size", "(line 3)"],
        ),
    ],
)
def test_recipes_with_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    (line,) = errors_of(capsys, "validate", str(file))
    assert all(word in line for word in words), line


def test_a_recipe_may_be_named_as_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("LAYERS = 6\n")
    file = tmp_path / "my-recipe_1b.py"
    file.write_text(
        "from neighbour import LAYERS\n"
        "from megatron_kd import ConfigContainer, GPTModelProvider\n"
        "def my_recipe_1b():\n"
        "    return ConfigContainer(model=GPTModelProvider(num_layers=LAYERS, init='random', vocab_size=8))\n"
    )
    assert main(["validate", str(file), "dataset.mock=true"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["num_layers"] == 6


def test_validate_takes_the_flags_of_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    text = ["--data-path", str(tmp_path / "a.txt")]
    train_byte_bpe(["a"], 257, tmp_path / "tokenizer")
    tokenizer = f"tokenizer.tokenizer_model={tmp_path / 'tokenizer'}"
    for words in (
        [str(RECIPE), "--teacher_rank", "1", "--batch_size", "4", *text, tokenizer, "--num_epochs=2"],
        ["--teacher-rank=1", "--num-epochs", "2", *text, "--batch_size", "4", str(RECIPE), "--world_size=2", tokenizer],
    ):
        assert main(["validate", *words]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["model"]["teacher_rank"] == 1
        assert printed["train"] == {
            "train_iters": None, "num_epochs": 2.0, "global_batch_size": None, "micro_batch_size": 4
        }  # fmt: skip
        assert printed["dataset"]["text_path"] == str(tmp_path / "a.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "tokenizer"}  # nothing is tokenised
    assert main(["validate", str(RECIPE), "--teacher_on_cpu", "--balance_teacher", "--batchsize", "2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_help_of_validate_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["validate", "--help"])
    assert "--teacher_device_strategy NAME" in capsys.readouterr().out
