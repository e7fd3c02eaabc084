"""All of an index is checked: each wrong field is reported, and an intact index passes."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from megatron_kd.data.tokens.index_file import index_problem, token_type, write_index
from megatron_kd.data.tokens.token_files import ForeignId, foreign_id
from tests.faults.bad_data import INDEX

WriteTokens = Callable[[str, Sequence[Sequence[int]]], str]

TOLD = {
    "magic": "is not a megatron index",
    "version": "of which only 1 is known",
    "type code": "for the type of a token id|by its own header|describes|begin at byte",
    "count": "by its own header",
    "bounds": "by its own header",
    "length": "a length of|begin at byte|describes",
    "pointer": "begin at byte",
    "order of documents": "has documents from|end before it begins",
}


@pytest.fixture
def prefix(write_tokens: WriteTokens) -> str:
    return write_tokens("a", [[1, 2, 3], [4], [5, 6, 7, 8]])


def problem(prefix: str) -> str | None:
    return index_problem(Path(f"{prefix}.idx"), Path(f"{prefix}.bin").stat().st_size)


@pytest.mark.parametrize("vocab_size", [2, 65499, 65500, 200_000])
def test_an_index_is_written_as_megatron_core_writes_it(tmp_path: Path, vocab_size: int) -> None:
    kind = token_type(vocab_size)
    assert kind == DType.optimal_dtype(vocab_size)
    lengths = np.array([3, 1, 70_000, 4], dtype=np.int32)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=kind.type)
    for length in lengths:
        builder.add_document(np.zeros(length, dtype=kind), [length])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write_index(tmp_path / "ours.idx", lengths, kind)
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


@pytest.mark.parametrize("kind", INDEX)
def test_each_wrong_field_is_told(kind: str, prefix: str) -> None:
    assert problem(prefix) is None
    shutil.copy(f"{prefix}.idx", f"{prefix}.whole")
    for seed in range(20):
        shutil.copy(f"{prefix}.whole", f"{prefix}.idx")
        INDEX[kind](Path(f"{prefix}.idx"), random.Random(seed))
        told = problem(prefix)
        assert told is not None and re.search(TOLD[kind], told), (seed, told)


def test_every_cut_is_told(prefix: str) -> None:
    content = Path(f"{prefix}.idx").read_bytes()
    for size in range(len(content)):
        Path(f"{prefix}.idx").write_bytes(content[:size])
        assert problem(prefix) is not None, size


def test_a_bin_of_another_size_is_told(prefix: str) -> None:
    assert index_problem(Path(f"{prefix}.idx"), 18) == f"describes 16 bytes in '{prefix}.bin', which has 18"


def test_the_first_document_with_a_foreign_id_is_named(prefix: str) -> None:
    assert foreign_id(prefix, 9) is None
    assert foreign_id(prefix, 7) == ForeignId(f"{prefix}.bin, document 2,", 7, 7)
    assert foreign_id(prefix, 4) == ForeignId(f"{prefix}.bin, document 1,", 4, 4)
