"""`megatron-kd preprocess`: text and JSON lines to tokenised `.bin/.idx` files, as megatron-core reads them.

    megatron-kd preprocess --input a.jsonl b.jsonl --output-prefix data/mine --tokenizer data/stdlib/tokenizer

The files do not depend on the number of workers: chunks are tokenised in parallel and written in order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kd.data.documents import JSON_SUFFIXES, TEXT_SUFFIXES, Encoded, Encoder, chunks, records
from megatron_kd.data.parallel import encode_in_order
from megatron_kd.data.progress import ByteProgress
from megatron_kd.data.tokenizer import Tokenizer, load_huggingface
from megatron_kd.errors import ConfigError, InputError, MegatronKDError

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder


@dataclass
class Counts:
    """What went into a pair of files. `tokens` include the end-of-document ids; bytes are of UTF-8 text."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0  # documents dropped
    malformed: int = 0  # records skipped
    first_malformed: str | None = None

    @property
    def bytes_per_token(self) -> float:
        """How many bytes of text a token stands for."""
        return self.text_bytes / max(self.tokens, 1)

    def __str__(self) -> str:
        text = f"{self.documents:,} documents, {self.text_bytes:,} bytes, {self.tokens:,} tokens"
        text += f", {self.bytes_per_token:.2f} bytes per token"
        text += f", {self.empty:,} empty documents dropped" if self.empty else ""
        return text + (f", {self.malformed:,} malformed records skipped" if self.malformed else "")


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    json_key: str = "text",
    append_eod: bool = True,
    split_lines: bool = False,
    skip_malformed: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Tokenise files into `output_prefix`.bin and .idx, which appear when complete and replace older ones.

    `.jsonl` and `.json` files hold one object a line, its text at `json_key`; `.txt` and `.py` files are one document
    each, or one a line with `split_lines`. `workers` None: one a core. `on_progress` gets the bytes done and in all.

    Raises:
        InputError: what the checks before any work find, all at once; the file and line of a malformed record, unless
            those are skipped; no document at all; or a disk that fails. Nothing is left behind.
    """
    workers = workers or len(os.sched_getaffinity(0))
    check_paths(inputs, output_prefix)
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    encoder = Encoder(tokenizer, json_key, append_eod, skip_malformed, dtype)
    encoded = encode_in_order(chunks(records(inputs, split_lines)), encoder, workers)
    total = sum(Path(path).stat().st_size for path in inputs)
    try:
        with contextlib.closing(encoded), _new_files(Path(output_prefix)) as (bin_path, idx_path):
            builder = IndexedDatasetBuilder(str(bin_path), dtype=dtype)
            counts = _write(encoded, builder, lambda done: on_progress(done, total) if on_progress else None)
            if not counts.documents:
                raise InputError(f"no document with text in {', '.join(map(str, inputs))}")
            builder.finalize(str(idx_path))
            _verify(bin_path, counts)
    except BrokenProcessPool as error:
        raise InputError("a worker process died, of too little memory as a rule: use fewer --workers") from error
    except OSError as error:
        raise InputError(f"{output_prefix}: {error}") from error
    return counts


def check_paths(inputs: Sequence[str | Path], output_prefix: str | Path) -> None:
    """Check what can be checked before any work.

    Raises:
        ConfigError: every input that is missing or of an unknown kind, and an output folder that cannot be written.
    """
    known = (*JSON_SUFFIXES, *TEXT_SUFFIXES)
    problems = [] if inputs else ["--input: give at least one file"]
    for path in map(Path, inputs):
        if not path.is_file():
            problems.append(
                f"--input {path}: {'a folder; name its files' if path.is_dir() else 'there is no such file'}"
            )
        elif path.suffix not in known:
            problems.append(f"--input {path}: suffix {path.suffix!r} is none of {', '.join(known)}")
        elif not os.access(path, os.R_OK):
            problems.append(f"--input {path}: not readable")
    prefix = Path(output_prefix)
    if prefix.suffix in (".bin", ".idx"):
        problems.append(f"--output-prefix {prefix}: give the path without {prefix.suffix}, which is added")
    folder = next(parent for parent in prefix.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problems.append(f"--output-prefix {prefix}: {str(folder)!r} is not a folder that can be written")
    if problems:
        raise ConfigError(problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `megatron-kd preprocess`."""
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help=".jsonl, .json, .txt or .py files")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin and PREFIX.idx")
    parser.add_argument("--tokenizer", required=True, metavar="DIR|FILE", help="a tokenizer folder or tokenizer.json")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="where a JSON line has its text (text)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument("--split-lines", action="store_true", help="each line of a text file is a document")
    parser.add_argument("--skip-malformed", action="store_true", help="skip and count malformed records")
    parser.add_argument("--no-append-eod", action="store_true", help="no end-of-document token after each document")


def run(args: argparse.Namespace) -> int:
    """Run `megatron-kd preprocess` with parsed arguments, print the counts and return the exit status 0.

    Raises:
        InputError: as `preprocess`, or a tokenizer that does not load.
    """
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: give 1 or more")
    check_paths(args.input, args.output_prefix)  # before the seconds a tokenizer takes
    tokenizer = load_huggingface(args.tokenizer, field="--tokenizer")
    with ByteProgress("tokenising") as on_progress:
        counts = preprocess(
            args.input,
            args.output_prefix,
            tokenizer,
            json_key=args.json_key,
            append_eod=not args.no_append_eod,
            split_lines=args.split_lines,
            skip_malformed=args.skip_malformed,
            workers=args.workers,
            on_progress=on_progress,
        )
    print(f"{args.output_prefix}: {counts}")
    if counts.first_malformed:
        print(f"the first malformed record: {counts.first_malformed}")
    return 0


@contextlib.contextmanager
def _new_files(prefix: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary .bin and .idx paths, moved to `prefix` if the body succeeds and removed if not."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    bin_path, idx_path = (Path(f"{prefix}.partial{suffix}") for suffix in (".bin", ".idx"))
    try:
        yield bin_path, idx_path
        # Without its index a .bin is not a dataset, so at no moment do an old and a new file make a pair.
        Path(f"{prefix}.idx").unlink(missing_ok=True)
        os.replace(bin_path, f"{prefix}.bin")
        os.replace(idx_path, f"{prefix}.idx")
    finally:
        bin_path.unlink(missing_ok=True)
        idx_path.unlink(missing_ok=True)


def _write(encoded: Iterable[Encoded], builder: IndexedDatasetBuilder, on_bytes: Callable[[int], None]) -> Counts:
    counts = Counts()
    done = 0
    for chunk in encoded:
        start = 0
        for length in chunk.lengths:
            builder.add_document(chunk.ids[start : start + length], [length])
            start += length
        counts.documents += len(chunk.lengths)
        counts.tokens += len(chunk.ids)
        counts.text_bytes += chunk.text_bytes
        counts.empty += chunk.empty
        counts.malformed += len(chunk.malformed)
        counts.first_malformed = counts.first_malformed or next(iter(chunk.malformed), None)
        done += chunk.file_bytes
        on_bytes(done)
    return counts


def _verify(bin_path: Path, counts: Counts) -> None:
    """Check the written files against what was counted."""
    from megatron_kd.data.blend import read_lengths

    lengths, token_bytes = read_lengths(str(bin_path.with_suffix("")))
    written = (len(lengths), int(lengths.sum(dtype="int64")), bin_path.stat().st_size)
    if written != (counts.documents, counts.tokens, counts.tokens * token_bytes):
        raise MegatronKDError(f"{bin_path}: wrote (documents, tokens, bytes) {written}, where {counts} were counted")
