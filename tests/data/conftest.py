"""A small tokenizer that the data tests share, trained once, and a writer of tokenised files."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface
from megatron_kd.runtime import cpu_backend
from tests.data import tokens

cpu_backend.install()

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 entries."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_bpe([(STDLIB / name).read_text() for name in ("argparse.py", "inspect.py")], 400, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> HuggingFaceTokenizer:
    """The same, loaded."""
    return load_huggingface(tokenizer_folder)


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable[[str, Sequence[Sequence[int]]], str]:
    """`write_tokens(name, documents)` writes a `.bin/.idx` pair and returns its prefix."""

    return lambda name, documents: tokens.write_tokens(tmp_path / name, documents)
