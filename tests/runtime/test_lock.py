"""A run folder has one run at a time, whatever becomes of its process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from megatron_kd.errors import RunFolderInUse
from megatron_kd.runtime.lock import LOCK, RUN, another_run_in, only_run_in, run_id


def holder(run_dir: Path, run: str = "") -> int:
    """A process of the run `run` that holds `run_dir` and sleeps; its number."""
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        os.environ[RUN] = run
        with only_run_in(run_dir):
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    return pid


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    pid = holder(tmp_path)
    try:
        with (
            pytest.raises(RunFolderInUse, match=rf"process {pid} on {socket.gethostname()}; wait"),
            only_run_in(tmp_path),
        ):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with only_run_in(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    with only_run_in(tmp_path):
        pass


def test_a_holder_on_another_host_may_be_dead_for_a_while(tmp_path: Path) -> None:
    pid = holder(tmp_path)
    try:
        (tmp_path / LOCK).write_text('{"host": "another", "pid": 7}\n')
        with (
            pytest.raises(RunFolderInUse, match="process 7 on another"),
            only_run_in(tmp_path, lease_s=0.1),
        ):
            pass
        (tmp_path / LOCK).write_text("\x00\x00")
        with pytest.raises(RunFolderInUse, match="has not yet said"), only_run_in(tmp_path, lease_s=0.1):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_whose_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not another_run_in(tmp_path / "none")
    with only_run_in(tmp_path):
        assert not another_run_in(tmp_path)
        if (pid := os.fork()) == 0:
            with contextlib.suppress(RunFolderInUse), only_run_in(tmp_path):
                os._exit(1)  # looking has released it
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert not another_run_in(tmp_path)
    pid = holder(tmp_path, "x")
    try:
        assert another_run_in(tmp_path)
        monkeypatch.setenv(RUN, "x")  # of its launcher, or another of its ranks
        assert not another_run_in(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    monkeypatch.setenv(RUN, "y")
    assert not another_run_in(tmp_path)


def test_ranks_of_a_run_have_one_name_and_other_runs_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RUN, "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    names = [run_id()]  # a process alone
    assert str(os.getpid()) in names[0]
    for world_size, port in (("2", "1234"), ("2", "1235"), ("4", "1234")):
        for name, value in {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        names.append(run_id())
        monkeypatch.setenv("RANK", "1")
        assert run_id() == names[-1]
    monkeypatch.setenv(RUN, "of an agent")
    assert [*names, run_id()] == sorted({*names, "of an agent"}, key=[*names, "of an agent"].index)
    assert socket.gethostname() not in names[-1]  # of two machines
