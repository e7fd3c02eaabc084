"""The preprocessor: exact counts, the same files from any number of workers, and nothing left of a failed run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_kd.data.preprocessing.byte_progress import ByteProgress
from megatron_kd.data.preprocessing.counts import Counts
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.token_files import read_lengths
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import ConfigError, InputError

GOOD = '{"text": "good"}'


def _jsonl(path: Path, texts: Sequence[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 7, key: text}) + "\n" for text in texts))
    return path


def _read(prefix: Path, tokenizer: HuggingFaceTokenizer) -> list[str]:
    data = IndexedDataset(str(prefix))
    return [tokenizer.decode(data[index].tolist()) for index in range(len(data))]


def test_documents_come_out_as_they_went_in_and_are_counted(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    texts = ["one\n two", "héllo 漢字 🙂", "three"]
    file = _jsonl(tmp_path / "a.jsonl", [*texts[:1], "", " \n", *texts[1:]])
    counts = preprocess([file], tmp_path / "out", tokenizer, workers=1)
    assert _read(tmp_path / "out", tokenizer) == [f"{text}<|endoftext|>" for text in texts]
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert counts == Counts(3, tokens, sum(len(text.encode()) for text in texts), empty=2)
    assert read_lengths(str(tmp_path / "out")).sum() == tokens


def test_any_number_of_workers_writes_the_same_files(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    paragraph = "def f(x):\n    return x + 1\n" * 40
    file = _jsonl(tmp_path / "a.jsonl", [f"{number} {paragraph}" for number in range(2200)])
    progress: list[tuple[int, int]] = []
    for workers in (1, 3):
        preprocess(
            [file], tmp_path / f"out{workers}", tokenizer, workers=workers, on_progress=lambda *x: progress.append(x)
        )
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"out1{suffix}").read_bytes() == (tmp_path / f"out3{suffix}").read_bytes()
    assert len(progress) == 2 * 3  # several chunks, or the order was not tested
    assert progress[-1] == (file.stat().st_size, file.stat().st_size)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_text_file_is_a_document_or_one_a_line(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffx = 1\r\n\r\ny".encode())
    (tmp_path / "b.py").write_text("z = 3\n")
    files = [tmp_path / "a.txt", tmp_path / "b.py"]
    preprocess(files, tmp_path / "whole", tokenizer, workers=1, append_eod=False)
    assert _read(tmp_path / "whole", tokenizer) == ["x = 1\r\n\r\ny", "z = 3\n"]
    counts = preprocess(files, tmp_path / "lines", tokenizer, workers=2, append_eod=False, split_lines=True)
    assert _read(tmp_path / "lines", tokenizer) == ["x = 1", "y", "z = 3"]
    assert (counts.documents, counts.empty) == (3, 1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"a\.jsonl:2: not JSON"),
        (b'["text"]', r"a\.jsonl:2: a JSON list"),
        (b'{"body": "x"}', r"a\.jsonl:2: no key 'text' \(it has 'body'\).*--json-key"),
        (b'{"text": 3}', r"a\.jsonl:2: 'text' is an int, not a string"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not UTF-8"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:2: 'text' has half a surrogate pair"),
    ],
)
def test_a_malformed_record_is_named_or_skipped_and_counted(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer, line: bytes, message: str, workers: int
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([GOOD.encode(), line, GOOD.encode()]))
    with pytest.raises(InputError, match=message):
        preprocess([file], tmp_path / "out" / "x", tokenizer, workers=workers)
    assert list((tmp_path / "out").iterdir()) == []
    counts = preprocess([file], tmp_path / "out" / "x", tokenizer, workers=workers, skip_malformed=True)
    assert (counts.documents, counts.malformed) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.bin", "x.idx", "x.sha256.json"]


def test_a_failed_run_leaves_the_older_files(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    preprocess([_jsonl(tmp_path / "a.jsonl", ["old"])], tmp_path / "out", tokenizer, workers=1)
    with pytest.raises(InputError, match="no document with text"):
        preprocess([_jsonl(tmp_path / "b.jsonl", ["", " "])], tmp_path / "out", tokenizer, workers=1)
    assert _read(tmp_path / "out", tokenizer) == ["old<|endoftext|>"]


class _DyingTokenizer:
    """Ends the process that encodes with it, as the kernel does with one that takes too much memory."""

    vocab_size, eos_id, fingerprint = 10, 9, "dying"

    def encode(self, text: str) -> list[int]:
        os._exit(9)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def test_a_dying_worker_ends_the_run_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer --workers"):
        preprocess([_jsonl(tmp_path / "a.jsonl", ["text"])], tmp_path / "out", _DyingTokenizer(), workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_paths_are_checked_all_at_once_before_any_work(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "file").write_text("x")
    inputs = [tmp_path / "none.txt", tmp_path, tmp_path / "a.csv"]
    with pytest.raises(ConfigError) as caught:
        preprocess(inputs, tmp_path / "file" / "out.bin", tokenizer)
    for part in ("no such file", "a folder", "'.csv' is none of .jsonl", "without .bin", "not a folder that can"):
        assert part in str(caught.value)
    assert len(caught.value.lines) == 5


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_kd.data.preprocessing.byte_progress._SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    with ByteProgress("tokenising", stream) as on_progress:
        on_progress(1_500_000, 3_000_000)
    assert stream.getvalue() == "tokenising: 1.5 of 3.0 MB, 0 s left\n"
