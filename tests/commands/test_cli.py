"""The command `megatron-kd`: it finds the commands, imports the one that is called, and refuses wrong usage."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from megatron_kd import __version__, commands
from megatron_kd.commands.cli import main, summaries
from tests.recipes.launch import ROOT

NAMES = ["cp", "evaluate", "export-hf", "generate", "import-hf", "launch", "lm-eval", "ls", "plan", "preprocess",
         "prune", "validate"]  # fmt: skip


def test_every_module_with_a_summary_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(summaries()) == NAMES
    for name, summary in summaries().items():
        module = import_module(f"{commands.__name__}.{name.replace('-', '_')}")
        assert summary == module.SUMMARY
        assert callable(module.add_arguments) and callable(module.run)
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert f"usage: megatron-kd {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(summary.split()[0] in shown for summary in summaries().values())


def imported_by(*command_lines: list[str]) -> set[str]:
    """The modules that a process has imported after these command lines."""
    code = f"""
import sys
from megatron_kd.commands.cli import main
for words in {command_lines}:
    try:
        main(words)
    except SystemExit:
        pass
print(*sys.modules, file=sys.stderr)
"""
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split())


def test_help_imports_what_it_needs() -> None:
    assert not imported_by(["--help"]) & {"torch", "numpy", "hydra", "yaml"}
    assert not imported_by(*([name, "--help"] for name in NAMES)) & {"torch", "transformers", "modelopt", "pyarrow"}


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_is_what_no_words_give(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(argv)
    said = capsys.readouterr()
    assert said.out.startswith("usage: megatron-kd") and "check a recipe with its overrides" in said.out
    assert said.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"megatron-kd {__version__}\n"


@pytest.mark.parametrize("argv", [["nothing"], ["ls", "x"], ["validate"]])
def test_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: megatron-kd" in capsys.readouterr().err


def test_only_commands_with_a_configuration_take_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ls", "train.lr=1"], ["import-hf", "a", "--output", "b", "--batch_size", "2"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["export-hf", "nowhere", "--output", "out"], ["import-hf", "nowhere", "--output", "out"]]
)
def test_a_refusal_is_not_buried_under_warnings_of_libraries(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_kd.commands.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: ") and "nowhere" in line
