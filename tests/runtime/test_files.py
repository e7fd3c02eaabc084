"""Files that are hashed while they are written, and compared when they are read."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from megatron_kd.runtime.files import replace_text, sha256_of, why_not, write_file, write_text


def test_a_file_is_hashed_on_its_way(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)

    def fill(file: object) -> str:
        file.write(data[:10])  # type: ignore[attr-defined]
        file.write(memoryview(data)[10:])  # type: ignore[attr-defined]
        return "done"

    result, record = write_file(tmp_path / "a", fill)
    assert result == "done" and (tmp_path / "a").read_bytes() == data
    assert record.size == len(data) and record.sha256 == hashlib.sha256(data).hexdigest()
    assert sha256_of(tmp_path / "a") == record.sha256 and why_not(tmp_path / "a", record) is None
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a", "over it")


def test_a_tensor_that_does_not_fit_raises_the_disks_own_error(tmp_path: Path) -> None:
    """torch writes from C++, and would say that a position is unexpected."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_file(tmp_path / "a", lambda file: torch.save(torch.zeros(1_000_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").stat().st_size == 100_000  # it was the limit


def test_a_replaced_text_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        replace_text(tmp_path / "a", text)
        assert (tmp_path / "a").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
