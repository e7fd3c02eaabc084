"""A run folder has one run at a time, whatever becomes of its process."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from megatron_kd.checkpoints.lock import LOCK, only_run_in
from megatron_kd.errors import RunFolderInUse


def holder(run_dir: Path) -> int:
    """A process that holds `run_dir` and sleeps; its number."""
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
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
