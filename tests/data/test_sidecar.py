"""A sidecar is read as it was written: sizes, content, and the file that records them."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kd.data.tokens.sidecar import Sidecar, hash_problems, read_sidecar, recorded_templates, size_problems
from megatron_kd.runtime.files import FileRecord, sha256_of
from tests.faults.bad_data import other_json


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    prefix = str(tmp_path / "a")
    files = {}
    for ending, content in ((".bin", b"12345678"), (".idx", b"index")):
        Path(prefix + ending).write_bytes(content)
        files[ending] = FileRecord(len(content), sha256_of(Path(prefix + ending)))
    Path(f"{prefix}.sha256.json").write_text(Sidecar(files, 1, 4).text())
    return prefix


def test_whole_files_pass_and_are_read_once(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_problems(prefix) == hash_problems(prefix, tmp_path / "cache") == []
    monkeypatch.setattr("megatron_kd.data.tokens.sidecar.sha256_of", lambda path: "read again")
    assert hash_problems(prefix, tmp_path / "cache") == []
    os.utime(f"{prefix}.bin", (1, 1))
    assert len(hash_problems(prefix, tmp_path / "cache")) == 2  # a new date: all are read again


def test_a_flipped_bit_is_found_by_its_file(prefix: str, tmp_path: Path) -> None:
    Path(f"{prefix}.bin").write_bytes(b"12345679")
    assert size_problems(prefix) == []
    (told,) = hash_problems(prefix, tmp_path / "cache")
    assert f"'{prefix}.bin' has other content than was written" in told
    assert hash_problems(prefix, tmp_path / "cache") == [told]  # which is not taken for checked


def test_sizes_are_compared_and_missing_files_told(prefix: str) -> None:
    Path(f"{prefix}.bin").write_bytes(b"1")
    Path(f"{prefix}.idx").unlink()
    assert [told.partition(":")[0] for told in size_problems(prefix)] == [
        f"'{prefix}.bin' has 1 bytes where 8 bytes were written",
        f"'{prefix}.idx' has no such file where 5 bytes were written",
    ]


def test_every_bit_of_it_counts(prefix: str) -> None:
    path = Path(f"{prefix}.sha256.json")
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(ValueError):
            read_sidecar(prefix)


def test_the_template_of_conversations_is_on_record(prefix: str) -> None:
    path, old = Path(f"{prefix}.sha256.json"), read_sidecar(prefix)
    assert old is not None and recorded_templates([prefix, "no/such"]) == {}
    path.write_text(replace(old, chat_template="{{ messages }}").text())
    assert recorded_templates([prefix, "no/such"]) == {prefix: "{{ messages }}"} and size_problems(prefix) == []
    path.write_text(path.read_text().replace("{{ messages }}", "{{ other }}"))
    assert recorded_templates([prefix]) == {} and "other content than was written" in size_problems(prefix)[0]


@pytest.mark.parametrize("seed", range(8))
def test_json_that_is_no_sidecar_is_told(seed: int, prefix: str) -> None:
    other_json(Path(f"{prefix}.sha256.json"), random.Random(seed))
    (told,) = size_problems(prefix)
    assert f"'{prefix}.sha256.json' cannot be read" in told


def test_without_it_nothing_is_compared(prefix: str, tmp_path: Path) -> None:
    Path(f"{prefix}.sha256.json").unlink()
    assert read_sidecar(prefix) is None
    assert size_problems(prefix) == hash_problems(prefix, tmp_path / "cache") == []
