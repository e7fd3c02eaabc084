"""A text file as a run's data: tokenised once, again when necessary, and never by half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.preprocessing.run_text import tokenised
from megatron_kd.data.samples.datasets import training_tokens
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, NullTokenizer, load_huggingface
from megatron_kd.errors import InputError
from tests.data.chats import PLAIN, chats, write_chats

ROOT = Path(__file__).resolve().parents[2]
END = "<|endoftext|>"


def read(prefix: str, tokenizer: HuggingFaceTokenizer) -> list[str]:
    data = IndexedDataset(prefix)
    return [tokenizer.decode(data[index].tolist()) for index in range(len(data))]


def files(prefix: str) -> dict[str, tuple[bytes, int]]:
    """The contents of the files, and their inodes."""
    paths = [Path(f"{prefix}{ending}") for ending in (".bin", ".idx")]
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in paths}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog on\ta mat \n  \nlast, without an end of line")
    return file


def test_a_line_of_text_is_a_document(
    prompts: Path, tokenizer: HuggingFaceTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tokenised(prompts, prompts.parent / "run/data", tokenizer)
    assert prefix == str(prompts.parent / "run/data/prompts")
    texts = ["a cat", "a dog on\ta mat ", "last, without an end of line"]
    assert read(prefix, tokenizer) == [f"{text}{END}" for text in texts]
    assert f"tokenised {prompts} into {prefix}: 3 documents" in capsys.readouterr().out
    about = json.loads(Path(f"{prefix}.tokenised.json").read_text())
    assert (about["text"], about["documents"]) == (str(prompts), 3)
    assert about["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in texts)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_an_object_a_line_has_its_text(tmp_path: Path, suffix: str, tokenizer: HuggingFaceTokenizer) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_text('{"text": "two\\nlines", "id": 1}\n{"text": "three"}\n')
    assert read(tokenised(file, tmp_path / "data", tokenizer), tokenizer) == [f"two\nlines{END}", f"three{END}"]


def test_it_is_made_once(prompts: Path, tokenizer_folder: Path, tokenizer: HuggingFaceTokenizer) -> None:
    folder = prompts.parent / "data"
    first = files(tokenised(prompts, folder, tokenizer))
    assert files(tokenised(prompts, folder, tokenizer)) == first
    os.utime(prompts, (1, 1))  # a copy has another date and the same bytes
    assert files(tokenised(prompts, folder, tokenizer)) == first
    shutil.copytree(tokenizer_folder, prompts.parent / "elsewhere")
    assert files(tokenised(prompts, folder, load_huggingface(prompts.parent / "elsewhere"))) == first


def test_other_bytes_of_the_same_size_and_date_are_another_text(prompts: Path, tokenizer: HuggingFaceTokenizer) -> None:
    folder = prompts.parent / "data"
    before = prompts.stat()
    first = files(tokenised(prompts, folder, tokenizer))
    prompts.write_text(prompts.read_text().replace("cat", "dog"))
    os.utime(prompts, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prompts.stat().st_size == before.st_size
    prefix = tokenised(prompts, folder, tokenizer)
    assert files(prefix) != first
    assert read(prefix, tokenizer)[0] == f"a dog{END}"


def test_another_tokenizer_makes_other_tokens(prompts: Path, tokenizer: HuggingFaceTokenizer) -> None:
    train_byte_bpe([prompts.read_text()], 260, prompts.parent / "small")
    small = load_huggingface(prompts.parent / "small")
    assert small.fingerprint != tokenizer.fingerprint != NullTokenizer(400).fingerprint
    folder = prompts.parent / "data"
    first = files(tokenised(prompts, folder, tokenizer))
    prefix = tokenised(prompts, folder, small)
    assert files(prefix) != first
    assert read(prefix, small)[0] == f"a cat{END}"


@pytest.mark.parametrize("gone", [".bin", ".idx", ".tokenised.json"])
def test_what_is_incomplete_is_made_anew(prompts: Path, tokenizer: HuggingFaceTokenizer, gone: str) -> None:
    folder = prompts.parent / "data"
    prefix = tokenised(prompts, folder, tokenizer)
    before = {name: data for name, (data, _) in files(prefix).items()}
    Path(f"{prefix}{gone}").write_bytes(b"")
    assert {name: data for name, (data, _) in files(tokenised(prompts, folder, tokenizer)).items()} == before


def test_conversations_are_made_once_for_a_template(tmp_path: Path, tokenizer_folder: Path) -> None:
    file, tokenizer = write_chats(tmp_path / "a.jsonl", chats(5)), load_huggingface(tokenizer_folder)
    with pytest.raises(InputError, match=r"dataset\.text_path=.*has no chat template"):
        tokenised(file, tmp_path / "data", tokenizer, chat=True)
    tokenizer.files.chat_templates["default"] = PLAIN
    prefix = tokenised(file, tmp_path / "data", tokenizer, chat=True)
    mask = Path(f"{prefix}.loss_mask.bin")
    made = mask.stat()
    assert made.st_size == IndexedDataset(prefix).sequence_lengths.sum()
    tokenised(file, tmp_path / "data", tokenizer, chat=True)
    assert mask.stat().st_ino == made.st_ino
    tokenizer.files.chat_templates["default"] = PLAIN.replace("<|", "[")
    tokenised(file, tmp_path / "data", tokenizer, chat=True)
    assert mask.stat().st_size != made.st_size


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_is_read(tmp_path: Path, tokenizer_folder: Path) -> None:
    text, folder = tmp_path / "long.txt", tmp_path / "data"
    text.write_text("".join(f"line {number} of a text that takes a while\n" for number in range(400_000)))
    script = (
        "from megatron_kd.data.preprocessing.run_text import tokenised\n"
        "from megatron_kd.data.tokens.tokenizer import load_huggingface\n"
        f"tokenised({str(text)!r}, {str(folder)!r}, load_huggingface({str(tokenizer_folder)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob("*.partial.bin")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(folder.glob("long.bin")) + list(folder.glob("long.idx")) + list(folder.glob("*.json"))
    text.write_text("short\n")
    tokenizer = load_huggingface(tokenizer_folder)
    assert read(tokenised(text, folder, tokenizer), tokenizer) == [f"short{END}"]
    assert {path.suffix for path in folder.iterdir()} == {".bin", ".idx", ".json"}
    assert sorted(path.name for path in folder.glob("*.json")) == ["long.sha256.json", "long.tokenised.json"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n{"prompt": "x"}\n', ["a.jsonl:2", "no key 'text'", "megatron-kd preprocess"]),
        ("a.jsonl", "not json\n", ["a.jsonl:1", "not JSON"]),
        ("a.txt", " \n\n", ["no document with text"]),
        ("no/a.txt", None, ["No such file"]),
        ("a.csv", "x\n", ["suffix '.csv'"]),
    ],
)
def test_what_is_wrong_names_the_field(
    tmp_path: Path, name: str, text: str | None, words: list[str], tokenizer: HuggingFaceTokenizer
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        tokenised(tmp_path / name, tmp_path / "data", tokenizer)
    assert all(word in str(caught.value) for word in [f"dataset.text_path={tmp_path / name}", *words])
    folder = tmp_path / "data"
    assert not folder.exists() or not list(folder.iterdir())


def test_the_tokens_of_the_training_split(write_tokens) -> None:
    first = write_tokens("a", [[1] * 10] * 8 + [[2] * 3] * 2)
    second = write_tokens("b", [[1] * 7])
    assert training_tokens(DatasetConfig(data_path=[first], split="8,2,0")) == 80
    assert training_tokens(DatasetConfig(data_path=[first], split="1,0,0")) == 86
    assert training_tokens(DatasetConfig(train_data_path=[0.9, first, 0.1, second], valid_data_path=[second])) == 93
