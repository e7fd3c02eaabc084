"""`megatron-kd preprocess`: text, tables and conversations to tokenised `.bin/.idx` files, as megatron-core reads them.

megatron-kd preprocess --input a.jsonl b.parquet --output-prefix data/mine --tokenizer data/stdlib/tokenizer
megatron-kd preprocess --chat --input chats.jsonl --output-prefix data/chats --tokenizer models/Llama-3.2-1B
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from megatron_kd.commands.arguments import path, too_small
from megatron_kd.data.chat.conversations import read_template
from megatron_kd.data.preprocessing.byte_progress import ByteProgress
from megatron_kd.data.preprocessing.tokenise_files import checked_sources, preprocess
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import ConfigError

SUMMARY = "turn text into tokenised .bin/.idx files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    kinds = ".jsonl, .json, .parquet, .txt or .py files, or folders saved by `datasets`"
    parser.add_argument("--input", nargs="+", required=True, type=path, metavar="PATH", help=kinds)
    parser.add_argument(
        "--output-prefix", required=True, type=path, metavar="PREFIX", help="writes PREFIX.bin and PREFIX.idx"
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=path,
        metavar="PATH",
        help="a tokenizer folder, tokenizer.json or SentencePiece .model",
    )
    parser.add_argument("--json-key", metavar="KEY", help="the key or column that has the text (text)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    parser.add_argument("--split-lines", action="store_true", help="each line of a text file is a document")
    parser.add_argument("--skip-malformed", action="store_true", help="skip and count malformed records")
    parser.add_argument("--no-append-eod", action="store_true", help="no end-of-document token after each document")
    parser.add_argument("--chat", action="store_true", help="records are conversations: writes a loss mask too")
    parser.add_argument(
        "--chat-template", type=path, metavar="FILE", help="a Jinja template in place of the tokenizer's"
    )
    what = "keys of conversations and messages that need not be in the text"
    parser.add_argument("--ignore-keys", nargs="+", default=[], metavar="KEY", help=what)


def run(args: argparse.Namespace) -> int:
    """Tokenise, print the counts, and return the exit code.

    Raises:
        ConfigError: options that contradict each other, and inputs and outputs that cannot be read or written.
        InputError: a tokenizer or template that does not load, or see `preprocess`.
    """
    if wrong := list(_problems(args)):
        raise ConfigError(wrong)
    json_key = args.json_key or "text"
    # Checked again by `preprocess`, but only after the seconds that a tokenizer takes to load.
    checked_sources(
        args.input, args.output_prefix, json_key=None if args.chat else json_key, split_lines=args.split_lines
    )
    tokenizer = load_huggingface(args.tokenizer, field="--tokenizer")
    template = None if args.chat_template is None else read_template(args.chat_template)
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
            ignored_keys=args.ignore_keys,
            skip_malformed=args.skip_malformed,
            workers=args.workers,
            on_progress=on_progress,
            say=lambda line: print(line, file=sys.stderr),
        )
    print(f"{args.output_prefix}: {counts}")
    if counts.first_malformed:
        print(f"the first malformed record: {counts.first_malformed}")
    return 0


def _problems(args: argparse.Namespace) -> Iterator[str]:
    yield from too_small(args, workers=1)
    if args.chat_template is not None and not args.chat:
        yield f"--chat-template {args.chat_template}: belongs to conversations; give --chat too"
    if args.ignore_keys and not args.chat:
        yield f"--ignore-keys {' '.join(args.ignore_keys)}: belongs to conversations; give --chat too"
    given = {"--json-key": args.json_key, "--split-lines": args.split_lines, "--no-append-eod": args.no_append_eod}
    for option in (name for name, value in given.items() if value and args.chat):
        yield f"{option}: belongs to text, and conversations are not; leave out --chat or {option}"
