"""Exit codes of recipe scripts, and the ranks that report the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd import entry
from megatron_kd.config.container import ConfigContainer
from megatron_kd.entry import main
from megatron_kd.errors import CheckpointCorrupt, InputError, MegatronKDError, NumericalFault, Preempted, RunFolderInUse
from tests.tiny import tiny_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigContainer:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tiny_config(tmp_path)


def test_only_rank_0_tells_why_a_run_is_refused(
    config: ConfigContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = []
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(lambda: config, ["model.seq_length=9"]) == 2
    assert capsys.readouterr().err == ""
    assert waited == [entry.SECONDS_FOR_RANK_0]
    assert not (tmp_path / "exit_code").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(lambda: config, ["model.seq_length=9"]) == 2
    assert "error: model.seq_length=9" in capsys.readouterr().err
    assert (tmp_path / "exit_code").read_text() == "2\n"
    assert len(waited) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("x"), 2), (NumericalFault("x"), 17), (CheckpointCorrupt("x"), 18), (Preempted("x"), 75)],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_ours_become_exit_codes(
    error: MegatronKDError, code: int, config: ConfigContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(cfg: ConfigContainer, hooks: object) -> None:
        raise error

    monkeypatch.setattr("megatron_kd.training.train.train", fail)
    assert main(lambda: config, []) == code
    assert capsys.readouterr().err == "error: x\n"
    assert (tmp_path / "exit_code").read_text() == f"{code}\n"


def test_a_run_that_found_another_in_its_folder_leaves_no_exit_code_there(
    config: ConfigContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cfg: ConfigContainer, hooks: object) -> None:
        raise RunFolderInUse("in use")

    monkeypatch.setattr("megatron_kd.training.train.train", fail)
    assert main(lambda: config, []) == 2
    assert capsys.readouterr().err == "error: in use\n"
    assert not (tmp_path / "exit_code").exists()


def test_a_bug_keeps_its_traceback(config: ConfigContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: ConfigContainer, hooks: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("megatron_kd.training.train.train", fail)
    with pytest.raises(KeyError):
        main(lambda: config, [])
    assert (tmp_path / "exit_code").read_text() == "1\n"


def test_a_run_that_ends_well_forgets_how_an_earlier_one_ended(
    config: ConfigContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("megatron_kd.training.train.train", lambda cfg, hooks: seen.append(cfg))
    (tmp_path / "exit_code").write_text("17\n")
    assert main(lambda: config, ["train.train_iters=3"]) == 0
    assert (tmp_path / "exit_code").read_text() == "0\n"
    assert [cfg.train.train_iters for cfg in seen] == [3]


@pytest.mark.parametrize(("words", "said"), [(["logger.progress=plain"], True), (["logger.progress=off"], False)])
def test_a_run_is_announced_before_it_is_imported(
    words: list[str], said: bool, config: ConfigContainer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lines: list[str] = []
    monkeypatch.setattr("megatron_kd.training.train.train", lambda *_: lines.append(capsys.readouterr().err))
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [*words, "model.tensor_model_parallel_size=2", "model.teacher.tensor_model_parallel_size=2"]
    assert main(lambda: config, words) == 0
    assert [f"into {config.logger.run_dir}, 2 ranks; importing" in line for line in lines] == [said]
