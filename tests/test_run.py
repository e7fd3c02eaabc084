"""A run from its saved file alone, and what `main` leaves behind when it refuses one."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.config.run_config import save_run_config
from megatron_kd.run import main
from megatron_kd.training.pace import MEASURED_TIMES
from tests.ranks import run_ranks
from tests.tiny import read_metrics, tiny_config, train_and_read


def without_times(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in MEASURED_TIMES} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "layout", "distilled"),
    [
        (2, {"tp": 2, "kd": {"skip_lm_loss": False, "logit_kl_temperature": 2.0}}, True),
        (1, {"precision": "bf16"}, False),
    ],
    ids=["distillation", "training on labels"],
)
def test_a_run_from_its_saved_file_is_the_same_run(
    world_size: int, layout: dict, distilled: bool, tmp_path: Path
) -> None:
    first = run_ranks(world_size, train_and_read, tiny_config(tmp_path / "a", distilled=distilled, **layout))[0]
    argv = [str(tmp_path / "a/run_config.yaml"), f"logger.run_dir={tmp_path / 'b'}"]
    assert run_ranks(world_size, main, argv) == [0] * world_size
    assert without_times(read_metrics(tmp_path / "b")) == without_times(first)
    assert (tmp_path / "b/exit_code").read_text() == "0\n"


def test_the_file_may_be_given_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run_config(tiny_config(tmp_path), tmp_path / "run.yaml")
    for argv in (
        [str(tmp_path / "run.yaml"), "model.seq_length=9", "model.hiden_size=8"],
        ["model.seq_length=9", "--config-file", str(tmp_path / "run.yaml"), "model.hiden_size=8"],
    ):
        assert main(argv) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("error: model.hiden_size: unknown key")
        assert lines[1].startswith("error: model.seq_length=9, model.teacher.seq_length=16")
    assert (tmp_path / "exit_code").read_text() == "2\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: no configuration is named; write -m megatron_kd.run RUN_DIR/run_config.yaml"),
        (["model.seq_length=8"], "error: no configuration is named"),
        (["no-such.yaml"], "error: no-such.yaml: cannot be read: No such file or directory"),
    ],
)
def test_without_a_readable_file(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_a_refused_run_replaces_an_older_exit_code(tmp_path: Path) -> None:
    save_run_config(tiny_config(tmp_path), tmp_path / "run.yaml")
    (tmp_path / "exit_code").write_text("17\n")
    assert main([str(tmp_path / "run.yaml"), "train.train_iters=-1"]) == 2
    assert (tmp_path / "exit_code").read_text() == "2\n"


def test_a_run_folder_that_cannot_be_written_is_only_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    save_run_config(tiny_config(tmp_path / "file"), tmp_path / "run.yaml")
    assert main([str(tmp_path / "run.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "logger.run_dir" in line


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "-m megatron_kd.run" in capsys.readouterr().out
