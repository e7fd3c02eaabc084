"""A killed run resumes from its partial output, and ends with the files of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.raw.chunks import CHUNK_BYTES
from megatron_kd.data.raw.documents import Encoder
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError

_LINE = json.dumps({"text": "def f(x):\n    return x + 1\n" * 40}) + "\n"
_CHUNKS = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks of text, each of which takes a while."""
    file = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    file.write_text("".join(f'{{"n": {n}, {_LINE[1:]}' for n in range(_CHUNKS * CHUNK_BYTES // len(_LINE))))
    return file


def _files(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")]


def _partial(prefix: Path, ending: str) -> Path:
    return Path(f"{prefix}.partial{ending}")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_writes_the_same_files(
    corpus: Path, tmp_path: Path, tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    preprocess([corpus], tmp_path / "whole", tokenizer)
    prefix = tmp_path / "out"
    command = [
        "preprocess",
        "--input",
        str(corpus),
        "--output-prefix",
        str(prefix),
        "--tokenizer",
        str(tokenizer_folder),
    ]
    process = subprocess.Popen([sys.executable, "-m", "megatron_kd.commands.cli", *command, "--workers", "2"])
    journal = _partial(prefix, ".journal")
    while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not prefix.with_suffix(".bin").exists()
    made, whole = _partial(prefix, ".bin").stat().st_size, Path(f"{tmp_path / 'whole'}.bin").stat().st_size
    assert 0 < made < whole  # the kill hit

    encoded: list[int] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, chunk: encoded.append(chunk.first) or encode(self, chunk))
    said: list[str] = []
    preprocess([corpus], prefix, tokenizer, workers=1, say=said.append)
    assert _files(prefix) == _files(tmp_path / "whole")
    assert encoded and encoded[0] > 0  # what was done is not done again
    assert len(said) == 1 and "resumes after" in said[0]
    assert not list(tmp_path.glob("*.partial*"))


def _stop_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a run stop, as by Ctrl-C, after some chunks; with every chunk in the journal."""
    encode, seen = Encoder.encode, []

    def stopping(self: Encoder, chunk: object) -> object:
        if len(seen) == chunks:
            monkeypatch.setattr(Encoder, "encode", encode)
            raise KeyboardInterrupt
        seen.append(chunk)
        return encode(self, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", stopping)
    monkeypatch.setattr("megatron_kd.data.preprocessing.partial_output._SECONDS_BETWEEN_COMMITS", 0.0)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of several chunks, small ones."""
    monkeypatch.setattr("megatron_kd.data.raw.sources.CHUNK_BYTES", 256)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"line {n} " * 5}) + "\n" for n in range(40)))
    return file


def _resumes(small: Path, tokenizer: HuggingFaceTokenizer, **options: object) -> bool:
    said: list[str] = []
    preprocess([small], small.parent / "out", tokenizer, workers=1, say=said.append, **options)  # type: ignore[arg-type]
    return bool(said)


def _break(small: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        preprocess([small], small.parent / "out", tokenizer, workers=1)
    assert _partial(small.parent / "out", ".bin").stat().st_size > 0


def test_what_a_kill_left_half_written_is_cut_off(
    small: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess([small], small.parent / "whole", tokenizer, workers=1)
    _break(small, tokenizer, monkeypatch)
    for ending, torn in ((".bin", b"\x01"), (".lengths", b"\x02\x03"), (".journal", b'{"cursor": {"inp')):
        with _partial(small.parent / "out", ending).open("ab") as file:
            file.write(torn)
    assert _resumes(small, tokenizer)
    assert _files(small.parent / "out") == _files(small.parent / "whole")


@pytest.mark.parametrize("change", ["input", "date", "options", "tokenizer", "format", "shorter"])
def test_anything_else_starts_anew(
    change: str, small: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(small, tokenizer, monkeypatch)
    options = {}
    if change == "input":
        small.write_text(small.read_text().replace("line", "Line"))
    elif change == "date":
        os.utime(small, ns=(1, 1))
    elif change == "options":
        options = {"append_eod": False}
    elif change == "tokenizer":
        monkeypatch.setattr(HuggingFaceTokenizer, "fingerprint", "another")
    elif change == "format":
        monkeypatch.setattr("megatron_kd.data.preprocessing.partial_output._FORMAT", 0)
    else:  # the journal lists more than there is
        _partial(small.parent / "out", ".bin").write_bytes(b"")
    assert not _resumes(small, tokenizer, **options)
    preprocess([small], small.parent / "whole", tokenizer, workers=1, **options)  # type: ignore[arg-type]
    assert _files(small.parent / "out") == _files(small.parent / "whole")


_SECOND_RUN = """
import sys, numpy, pathlib
from megatron_kd.data.preprocessing.partial_output import PartialOutput
PartialOutput(pathlib.Path(sys.argv[1]), {}, numpy.uint16, with_mask=False).__enter__()
"""


def test_two_runs_do_not_write_the_same_files(
    small: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock is a process's: the second run must be one."""
    prefix, seen, encode = small.parent / "out", [], Encoder.encode

    def meanwhile(self: Encoder, chunk: object) -> object:
        if not seen:
            argv = [sys.executable, "-c", _SECOND_RUN, str(prefix)]
            seen.append(subprocess.run(argv, capture_output=True, text=True, check=False))
        return encode(self, chunk)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", meanwhile)
    preprocess([small], prefix, tokenizer, workers=1)
    assert seen[0].returncode == 1
    assert "InputError" in seen[0].stderr and "another process is making these files" in seen[0].stderr


def test_a_refused_record_leaves_nothing_to_go_on_with(
    small: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_kd.data.preprocessing.partial_output._SECONDS_BETWEEN_COMMITS", 0.0)
    with small.open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl:41: no key 'text'"):
        preprocess([small], small.parent / "out", tokenizer, workers=1)
    assert [path.name for path in small.parent.iterdir()] == ["a.jsonl"]
