"""Records of conversations say nothing that is dropped in silence: `chat.yaml` lists records and their outcomes."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megatron_kd.commands.cli import main
from megatron_kd.data.preprocessing.run_text import tokenised
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.token_files import read_lengths
from megatron_kd.data.tokens.tokenizer import load_huggingface

WRITTEN = yaml.safe_load(Path(__file__).with_name("chat.yaml").read_text(encoding="utf-8"))
GOOD = {
    "messages": {"messages": [{"role": "user", "content": "good"}, {"role": "assistant", "content": "good"}]},
    "conversations": {"conversations": [{"from": "human", "value": "good"}, {"from": "gpt", "value": "good"}]},
    "instruction": {"instruction": "good", "output": "good"},
    "prompt": {"prompt": "good", "completion": "good"},
}


def _cases() -> list[Any]:
    def known(case: dict[str, Any]) -> list[pytest.MarkDecorator]:
        return [pytest.mark.xfail(strict=True, reason="fails today")] if case.get("fails_today") else []

    return [pytest.param(case, id=case["name"].replace(" ", "-"), marks=known(case)) for case in WRITTEN["cases"]]


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of one token per byte: no token straddles the end of what is learnt."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_bpe(["a"], 257, folder)
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path, bytes_only: Path, case: dict[str, Any]) -> Path:
    """The same with the case's template or, as `save_pretrained` writes them, templates."""
    folder, template = tmp_path / "tokenizer", WRITTEN["templates"][case.get("template", "tools")]
    named = template if isinstance(template, dict) else {"default": template}
    (folder / "additional_chat_templates").mkdir(parents=True)
    for file in bytes_only.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, text in named.items():
        path = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        (folder / path).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", _cases())
def test_a_record_is_read_as_written_or_refused(
    case: dict[str, Any], tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "said" in case:
        path = _input(case, tmp_path, _lines(case))
        prefix = tmp_path / "out"
        if case.get("text_path"):
            prefix = Path(tokenised(path, tmp_path / "run", load_huggingface(tokenizer), chat=True))
        else:
            assert _preprocess(case, path, prefix, tokenizer) == 0, capsys.readouterr().err
        assert _said(prefix, tokenizer) == case["said"]
        return
    path = _input(case, tmp_path, [json.dumps(_good(case)), *_lines(case)])
    assert _preprocess(case, path, tmp_path / "out", tokenizer) == 2
    (told,) = capsys.readouterr().err.splitlines()
    where = f"{path}:2: " if path.suffix == ".jsonl" else f"{path}, row 1: "
    assert all(words in told for words in (where, *case["refused"])), told
    assert _preprocess(case, path, tmp_path / "out", tokenizer, "--skip-malformed") == 0
    assert "1 document," in (out := capsys.readouterr().out) and "1 malformed record skipped" in out


def _lines(case: dict[str, Any]) -> list[str]:
    return case.get("lines") or [json.dumps(record) for record in case["records"]]


def _good(case: dict[str, Any]) -> dict[str, Any]:
    """A record of the same columns, where it is to share a table."""
    first = case["records"][0] if "in" in case else {}
    return next((GOOD[key] for key in first if key in GOOD), GOOD["messages"])


def _input(case: dict[str, Any], folder: Path, lines: list[str]) -> Path:
    kind = case.get("in", "jsonl")
    path = folder / {"jsonl": "in.jsonl", "parquet": "in.parquet"}.get(kind, "saved")
    if kind == "jsonl":
        path.write_text("".join(f"{line}\n" for line in lines))
        return path
    records = [json.loads(line) for line in lines]
    if path.name == "saved":
        types = {"on_mixed_types": "use_json"} if kind == "json_folder" else {}
        datasets.Dataset.from_list(records, **types).save_to_disk(str(path))
    else:
        pq.write_table(pa.Table.from_pylist(_same_keys(records)), path)
    return path


def _same_keys(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`from_pylist` takes its columns from the first record."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [{key: record.get(key) for key in keys} for record in records]


def _preprocess(case: dict[str, Any], path: Path, prefix: Path, tokenizer: Path, *options: str) -> int:
    words = ["--input", str(path), "--output-prefix", str(prefix), "--tokenizer", str(tokenizer), "--workers", "1"]
    return main(["preprocess", "--chat", *words, *case.get("options", ()), *options])


def _said(prefix: Path, tokenizer: Path) -> list[str]:
    """The text of each document, with what is learnt in [[ ]]."""
    tokens = load_huggingface(tokenizer)
    ids = np.fromfile(f"{prefix}.bin", dtype=np.uint16).tolist()
    mask = np.fromfile(f"{prefix}.loss_mask.bin", dtype=np.uint8).tolist()
    documents, begin = [], 0
    for length in read_lengths(str(prefix)).tolist():
        pairs = list(zip(mask, ids, strict=True))[begin : begin + length]
        runs = [(bit, tokens.decode([token for _, token in run])) for bit, run in groupby(pairs, lambda pair: pair[0])]
        documents.append("".join(f"[[{text}]]" if bit else text for bit, text in runs))
        begin += length
    return documents
