"""`megatron-kd preprocess`: text, tables and conversations to tokenised `.bin/.idx` files, as megatron-core reads them.

    megatron-kd preprocess --input a.jsonl b.parquet --output-prefix data/mine --tokenizer data/stdlib/tokenizer
    megatron-kd preprocess --chat --input chats.jsonl --output-prefix data/chats --tokenizer models/Llama-3.2-1B

The files do not depend on the number of workers: chunks are tokenised in parallel and written in order. Nor do they
depend on how often the run was stopped: the same command goes on where it was (`data.partial`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from megatron_kd.data.chat.conversations import ChatReader, ChatTemplate, read_template
from megatron_kd.data.preprocessing.parallel import encode_in_order
from megatron_kd.data.preprocessing.partial import Counts, PartialOutput
from megatron_kd.data.preprocessing.preprocess_progress import ByteProgress
from megatron_kd.data.raw.documents import Encoder, Reader, TextReader
from megatron_kd.data.raw.sources import Source, open_sources, read_chunks
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, Tokenizer, load_huggingface
from megatron_kd.errors import ConfigError, InputError


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    *,
    json_key: str = "text",
    append_eod: bool = True,
    split_lines: bool = False,
    chat: bool = False,
    chat_template: str | None = None,
    skip_malformed: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> Counts:
    """Tokenise inputs into `output_prefix`.bin and .idx, which appear when complete and replace older ones.

    `.jsonl` and `.json` files hold one object a line, its text at `json_key`; of `.parquet` files and folders that
    `datasets` has saved, `json_key` is the column; `.txt` and `.py` files are one document each, or one a line with
    `split_lines`. With `chat`, objects and rows are conversations (`data.chat`), rendered by `chat_template` (None: the
    tokenizer's), and `output_prefix`.loss_mask.bin tells which tokens are the assistant's.

    A run that is stopped, killed too, goes on with what it has on disk if it is started again with the same arguments
    and unchanged inputs; `say` is told. `workers` None: one a core. `on_progress` gets the bytes done and in all.

    Raises:
        InputError: what the checks before any work find, all at once; the file and line of a malformed record, unless
            those are skipped; no document at all; or a disk that fails.
    """
    sources = checked_sources(inputs, output_prefix, json_key=None if chat else json_key, split_lines=split_lines)
    from megatron.core.datasets.indexed_dataset import DType

    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    reader, options = _reader(tokenizer, json_key, append_eod, chat, chat_template)
    made_of = {
        "inputs": [source.identity for source in sources],
        "tokenizer": tokenizer.fingerprint,
        "dtype": dtype.__name__,
        "options": {**options, "split_lines": split_lines, "skip_malformed": skip_malformed},
    }
    total = sum(source.size for source in sources)
    try:
        with PartialOutput(Path(output_prefix), made_of, dtype, with_mask=chat) as output:
            if output.resumed:
                say(f"{output_prefix}: goes on after {output.progress.counts}")
            stream = read_chunks(sources, output.progress.cursor)
            encoder = Encoder(reader, skip_malformed, dtype)
            with contextlib.closing(encode_in_order(stream, encoder, workers or _cores())) as encoded:
                for chunk in encoded:
                    output.append(chunk)
                    if on_progress:
                        on_progress(output.progress.file_bytes, total)
            if not output.progress.counts.documents:
                raise InputError(f"no document with text in {', '.join(map(str, inputs))}")
            output.finish()
    except BrokenProcessPool as error:
        raise InputError("a worker process died, of too little memory as a rule: use fewer --workers") from error
    except OSError as error:
        raise InputError(f"{output_prefix}: {error}") from error
    return output.progress.counts


def checked_sources(
    inputs: Sequence[str | Path], output_prefix: str | Path, *, json_key: str | None, split_lines: bool
) -> list[Source]:
    """The inputs as sources, after checking what can be checked before any work.

    Raises:
        ConfigError: every input that is missing, damaged or of an unknown kind, and an output folder that cannot be
            written.
    """
    sources, problems = open_sources(inputs, json_key=json_key, split_lines=split_lines)
    prefix = Path(output_prefix)
    if prefix.suffix in (".bin", ".idx"):
        problems.append(f"--output-prefix {prefix}: give the path without {prefix.suffix}, which is added")
    folder = next(parent for parent in prefix.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problems.append(f"--output-prefix {prefix}: {str(folder)!r} is not a folder that can be written")
    if problems:
        raise ConfigError(problems)
    return sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `megatron-kd preprocess`."""
    kinds = ".jsonl, .json, .parquet, .txt or .py files, or folders saved by `datasets`"
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=kinds)
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin and PREFIX.idx")
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH", help="a tokenizer folder, tokenizer.json or SentencePiece .model"
    )
    parser.add_argument("--json-key", metavar="KEY", help="the key or column that has the text (text)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument("--split-lines", action="store_true", help="each line of a text file is a document")
    parser.add_argument("--skip-malformed", action="store_true", help="skip and count malformed records")
    parser.add_argument("--no-append-eod", action="store_true", help="no end-of-document token after each document")
    parser.add_argument("--chat", action="store_true", help="records are conversations: writes a loss mask too")
    parser.add_argument("--chat-template", metavar="FILE", help="a Jinja template in place of the tokenizer's")


def run(args: argparse.Namespace) -> int:
    """Run `megatron-kd preprocess` with parsed arguments, print the counts and return the exit status 0.

    Raises:
        InputError: as `preprocess`, or a tokenizer that does not load.
    """
    _check_options(args)
    json_key = args.json_key or "text"
    # Before the seconds a tokenizer takes.
    checked_sources(
        args.input, args.output_prefix, json_key=None if args.chat else json_key, split_lines=args.split_lines
    )
    tokenizer = load_huggingface(args.tokenizer, field="--tokenizer")
    template = None
    if args.chat_template is not None:
        template = read_template(args.chat_template)
    with ByteProgress("tokenising") as on_progress:
        counts = preprocess(
            args.input,
            args.output_prefix,
            tokenizer,
            json_key=json_key,
            append_eod=not args.no_append_eod,
            split_lines=args.split_lines,
            chat=args.chat,
            chat_template=template,
            skip_malformed=args.skip_malformed,
            workers=args.workers,
            on_progress=on_progress,
            say=lambda line: print(line, file=sys.stderr),
        )
    print(f"{args.output_prefix}: {counts}")
    if counts.first_malformed:
        print(f"the first malformed record: {counts.first_malformed}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    problems = []
    if args.workers is not None and args.workers < 1:
        problems.append(f"--workers {args.workers}: give 1 or more")
    if args.chat_template is not None and not args.chat:
        problems.append(f"--chat-template {args.chat_template}: belongs to conversations; give --chat too")
    given = {"--json-key": args.json_key, "--split-lines": args.split_lines, "--no-append-eod": args.no_append_eod}
    for option in (name for name, value in given.items() if value and args.chat):
        problems.append(f"{option}: belongs to text, and conversations are not; leave out --chat or {option}")
    if problems:
        raise ConfigError(problems)


def chat_template_of(tokenizer: Tokenizer, template: str | None = None) -> str:
    """`template` or, where that is None, the tokenizer's own, as text.

    Raises:
        InputError: see `ChatTemplate`.
    """
    return _template(tokenizer, template).text


def _template(tokenizer: Tokenizer, template: str | None) -> ChatTemplate:
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise InputError("conversations need a tokenizer of type huggingface, with a chat template")
    return ChatTemplate(tokenizer, template)


def _reader(
    tokenizer: Tokenizer, json_key: str, append_eod: bool, chat: bool, chat_template: str | None
) -> tuple[Reader, dict[str, Any]]:
    """What reads the records, and the options that decide on what it makes of them."""
    if not chat:
        return TextReader(tokenizer, json_key, append_eod), {"json_key": json_key, "append_eod": append_eod}
    template = _template(tokenizer, chat_template)
    return ChatReader(template), {"chat_template": template.text, "names": template.tokenizer.hf.special_tokens_map}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
