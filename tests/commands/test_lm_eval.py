"""`megatron-kd lm-eval`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.commands import cli, lm_eval
from tests.evaluation.harness_tasks import without_network_or_home, write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    without_network_or_home(monkeypatch, tmp_path_factory.getbasetemp() / "datasets")


def test_the_command(exported: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(exported), "--tasks", "choose", "--include-path", str(tasks), "--limit", "3"]
    assert cli.main(["lm-eval", *words, "--output", str(tmp_path / "out.json")]) == 0
    assert "|choose|" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["model"] == str(exported) and written["limit"] == 3
    assert written["n-samples"]["choose"] == {"original": 12, "effective": 3}
    assert 0 <= written["results"]["choose"]["acc,none"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "no_such"], "error: --tasks no_such: not among the harness's "),
        (["--tasks", "no_data"], "error: --tasks no_data: does not load: FileNotFoundError: "),
        (["--tasks", "choose,"], "error: --tasks 'choose,': names an empty task; write NAME or NAME,NAME"),
        (["--tasks", "choose", "--limit", "0"], "error: --limit 0: must be 1 or more"),
        (["--tasks", "choose", "--include-path", "nowhere"], "error: --include-path nowhere: there is no such folder"),
        (["--tasks", "choose", "--output", "no/such/file"], "error: --output no/such/file: there is no folder"),
        (["--tasks", "choose", "--model", "nowhere"], "error: --model=nowhere: no checkpoint there"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, exported: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--model" in words else ["--model", str(exported)]
    given += [] if "--include-path" in words else ["--include-path", str(tasks)]
    assert cli.main(["lm-eval", *given, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(message)


def test_without_the_harness(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm_eval.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lm-eval", "--model", str(exported), "--tasks", "choose"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: lm_eval, EleutherAI's harness, is not installed; pip install megatron_kd[eval]"
