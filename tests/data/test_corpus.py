"""The demo corpus: same sources, same files; held-out documents are whole and apart; half a corpus is made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.preprocessing.corpus import describe, make_corpus, read_documents
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import InputError
from tests.data.conftest import STDLIB

VOCAB = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the standard library's `xml` package."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, vocab_size=VOCAB, source=STDLIB / "xml", workers=1)
    return folder


def _paths(corpus: Path, split: str) -> list[str]:
    return [json.loads(line)["path"] for line in (corpus / f"{split}.jsonl").read_text().splitlines()]


def _contents(corpus: Path) -> dict[str, bytes]:
    names = ("train.jsonl", "valid.jsonl", "train.bin", "train.idx", "valid.bin", "valid.idx", "manifest.json")
    return {name: (corpus / name).read_bytes() for name in names}


def test_splits_are_whole_files_and_share_none(corpus: Path) -> None:
    train, valid = _paths(corpus, "train"), _paths(corpus, "valid")
    assert len(train) > len(valid) > 0
    assert not set(train) & set(valid)
    documents = {item.path: item for item in read_documents(STDLIB / "xml")}
    assert sorted(train + valid) == sorted(documents)
    assert all(documents[path].held_out for path in valid)


def test_the_same_sources_make_the_same_corpus(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path, vocab_size=VOCAB, source=STDLIB / "xml", workers=2)
    assert _contents(tmp_path) == _contents(corpus)


def test_its_files_are_what_training_reads(corpus: Path) -> None:
    tokenizer = load_huggingface(corpus / "tokenizer")
    assert tokenizer.vocab_size == VOCAB
    train, valid, _ = build_datasets(
        DatasetConfig(train_data_path=[str(corpus / "train")], valid_data_path=[str(corpus / "valid")]),
        seq_length=64,
        train_samples=10,
        valid_samples=2,
        test_samples=0,
        seed=1,
        tokenizer=tokenizer,
    )
    assert train is not None and valid is not None
    text = "".join(json.loads(line)["text"] for line in (corpus / "valid.jsonl").read_text().splitlines())
    assert tokenizer.decode(valid[0]["tokens"].tolist()).split("<|endoftext|>")[0] in text


def test_a_complete_corpus_is_left_as_it_is(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    said: list[str] = []
    manifest = make_corpus(corpus, vocab_size=VOCAB, source=STDLIB / "xml", say=said.append)
    assert said == [f"{corpus} is complete"]
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    assert describe(manifest).startswith(f"train: {len(_paths(corpus, 'train'))} documents, ")


@pytest.mark.parametrize("damage", ["manifest.json", "valid.idx", "train.bin", "tokenizer/tokenizer.json"])
def test_a_broken_corpus_is_made_anew_beside_what_is_not_its_own(tmp_path: Path, damage: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):  # enough for both splits
        (source / f"m{number}.py").write_text(f"print({number}, 'some text to merge, some text')\n" * 3)
    corpus = tmp_path / "corpus"
    make_corpus(corpus, vocab_size=VOCAB, source=source, workers=1)
    before = _contents(corpus)
    (corpus / "mine.txt").write_text("mine")
    (corpus / damage).write_bytes((corpus / damage).read_bytes()[:-3])
    make_corpus(corpus, vocab_size=VOCAB, source=source, workers=1)
    assert _contents(corpus) == before
    assert (corpus / "mine.txt").read_text() == "mine"


def test_another_vocabulary_is_another_corpus(corpus: Path, tmp_path: Path) -> None:
    for size in (VOCAB, VOCAB + 10):
        make_corpus(tmp_path, vocab_size=size, source=STDLIB / "xml", workers=1)
        assert load_huggingface(tmp_path / "tokenizer").vocab_size == size


def test_undecodable_empty_and_repeated_files_are_left_out_aloud(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name, content in {
        "a.py": b"x = 1\n",
        "b.py": b"x = 1\n",
        "c.py": b"\n",
        "d.py": b"# \xff\n",
        "test/e.py": b"y = 2\n",
        "notes.txt": b"z",
    }.items():
        (tmp_path / name).write_bytes(content)
    said: list[str] = []
    assert [item.path for item in read_documents(tmp_path, said.append)] == ["a.py"]
    assert said == ["skipped 1 files that are not UTF-8: d.py", "left out 2 empty or repeated files"]


def test_a_folder_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--source"):
        make_corpus(tmp_path / "out", source=tmp_path)


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot be made in '{tmp_path}/file'"):
        make_corpus(tmp_path / "file", source=STDLIB / "xml")
