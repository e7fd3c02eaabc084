"""Parquet files and folders of `datasets`: the same documents as JSON lines, in chunks, from any row on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_kd.commands.cli import main
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.raw.chunks import Cursor
from megatron_kd.data.raw.open_inputs import open_sources
from megatron_kd.data.raw.sources import Source
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import ConfigError, InputError
from tests.data.chats import MARKED, chats, write_chats

TEXTS = [f"text {n} " * (1 + n % 7) for n in range(500)]


def _parquet(path: Path, column: str = "text", group: int = 64, **more: Any) -> Path:
    pq.write_table(pa.table({"id": range(len(TEXTS)), column: TEXTS, **more}), path, row_group_size=group)
    return path


def _folder(path: Path, values: dict[str, Any], shards: int = 3) -> Path:
    datasets.Dataset.from_dict(values).save_to_disk(str(path), num_shards=shards)
    return path


def _jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def _files(prefix: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(prefix.parent.glob(f"{prefix.name}.*"))]


def test_every_kind_of_input_gives_the_same_documents(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    inputs = {
        "jsonl": _jsonl(tmp_path / "a.jsonl"),
        "txt": tmp_path / "a.txt",
        "parquet": _parquet(tmp_path / "a.parquet"),
        "folder": _folder(tmp_path / "saved", {"text": TEXTS}),
    }
    for name, path in inputs.items():
        preprocess([path], tmp_path / f"out_{name}", tokenizer, split_lines=True, workers=1)
        assert _files(tmp_path / f"out_{name}") == _files(tmp_path / "out_jsonl"), name
    counts = preprocess(list(inputs.values()), tmp_path / "out_all", tokenizer, split_lines=True, workers=2)
    assert counts.documents == 4 * len(TEXTS)
    assert _files(tmp_path / "out_all")[0] == 4 * _files(tmp_path / "out_jsonl")[0]


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_table_is_read_in_chunks_and_from_any_of_them_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_kd.data.raw.tables.CHUNK_BYTES", 1 << 10)
    path = _parquet(tmp_path / "a.parquet") if kind == "parquet" else _folder(tmp_path / "saved", {"text": TEXTS})
    (source,), problems = open_sources([path], json_key="text")
    assert not problems
    chunks = list(source.chunks(Cursor(3)))
    assert len(chunks) > 8
    assert [row["text"] for chunk in chunks for row in chunk.data] == TEXTS
    assert all(set(row) == {"text"} for chunk in chunks for row in chunk.data)  # no other column is read
    assert sum(chunk.file_bytes for chunk in chunks) == source.size
    for number, chunk in enumerate(chunks):
        assert list(source.chunks(chunk.after)) == chunks[number + 1 :]


def test_conversations_in_tables_are_those_in_lines(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    conversations = chats(40)
    options: dict[str, Any] = {"chat": True, "chat_template": MARKED, "workers": 1}
    preprocess([write_chats(tmp_path / "a.jsonl", conversations)], tmp_path / "lines", tokenizer, **options)
    pq.write_table(pa.table({"messages": conversations}), tmp_path / "a.parquet")
    preprocess([tmp_path / "a.parquet"], tmp_path / "parquet", tokenizer, **options)
    folder = _folder(tmp_path / "saved", {"messages": conversations})
    preprocess([folder], tmp_path / "folder", tokenizer, **options)
    assert _files(tmp_path / "lines") == _files(tmp_path / "parquet") == _files(tmp_path / "folder")
    assert len(_files(tmp_path / "lines")) == 4


def test_a_null_is_a_malformed_record_named_by_its_row(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 1: 'text' is a NoneType, not a string"):
        preprocess([tmp_path / "a.parquet"], tmp_path / "out", tokenizer, workers=1)
    counts = preprocess([tmp_path / "a.parquet"], tmp_path / "out", tokenizer, workers=1, skip_malformed=True)
    assert (counts.documents, counts.malformed) == (2, 1)


def test_damage_deep_in_a_file_is_told_with_its_name(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    path = _parquet(tmp_path / "a.parquet")
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    data[1000:3000] ^= 0xFF
    path.write_bytes(data.tobytes())
    with pytest.raises(InputError, match=r"a\.parquet"):
        preprocess([path], tmp_path / "out", tokenizer, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def _damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    good = _parquet(folder / "good.parquet")
    (folder / "cut.parquet").write_bytes(good.read_bytes()[:-100])
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "plain").mkdir()
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}).save_to_disk(str(folder / "splits"))
    _folder(folder / "torn", {"text": TEXTS}, shards=1)
    (arrow,) = (folder / "torn").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    return {
        "cut": (folder / "cut.parquet", "not a readable Parquet file"),
        "empty": (folder / "empty.parquet", "not a readable Parquet file"),
        "another column": (_parquet(folder / "b.parquet", "body"), "no column 'text' (it has 'id', 'body')"),
        "numbers": (_parquet(folder / "c.parquet", "body", text=range(500)), "column 'text' is int64, not text"),
        "a folder": (folder / "plain", "none that `datasets` has saved"),
        "splits": (folder / "splits", f"has several splits; name one: {folder / 'splits' / 'train'}"),
        "a torn folder": (folder / "torn", "`datasets` cannot load it"),
    }


def test_what_cannot_be_read_is_refused_before_any_work_all_at_once(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = _damaged(tmp_path)
    capsys.readouterr()
    argv = ["--output-prefix", str(tmp_path / "out"), "--tokenizer", str(tokenizer_folder), "--input"]
    assert main(["preprocess", *argv, *(str(path) for path, _ in cases.values())]) == 2
    lines = capsys.readouterr().err.splitlines()
    for (path, message), line in zip(cases.values(), lines, strict=True):
        assert line.startswith(f"error: --input {path}: ") and message in line


def test_a_table_without_conversations_is_refused(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"no columns 'messages', 'conversations', .* \(it has 'id', 'text'\)"):
        preprocess([_parquet(tmp_path / "a.parquet")], tmp_path / "out", tokenizer, chat=True)


def test_sources_know_when_they_change(tmp_path: Path) -> None:
    def identities() -> list[dict[str, Any]]:
        sources: list[Source] = open_sources([parquet, folder], json_key="text")[0]
        return [source.identity for source in sources]

    parquet, folder = _parquet(tmp_path / "a.parquet"), _folder(tmp_path / "saved", {"text": TEXTS})
    before = identities()
    assert before == identities()
    _parquet(parquet, group=32)
    _folder(folder, {"text": [*TEXTS, "more"]})
    assert all(new != old for new, old in zip(identities(), before, strict=True))
