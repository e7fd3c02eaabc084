"""Text, tables and conversations to tokenised `.bin/.idx` files, as megatron-core reads them.

The files do not depend on the number of workers: chunks are tokenised in parallel and written in order. Nor do they
depend on how often the run was stopped: the same call resumes where the last one was (`partial_output`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_kd.data.chat.conversations import ChatReader, ChatTemplate
from megatron_kd.data.chat.end_of_turn import ends_by_text_alone
from megatron_kd.data.preprocessing.counts import Counts
from megatron_kd.data.preprocessing.parallel import encode_in_order
from megatron_kd.data.preprocessing.partial_output import PartialOutput
from megatron_kd.data.raw.chunks import Cursor
from megatron_kd.data.raw.documents import Encoder, Reader, TextReader
from megatron_kd.data.raw.open_inputs import open_sources, read_chunks
from megatron_kd.data.raw.sources import Source
from megatron_kd.data.tokens.index_file import token_type
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, Tokenizer
from megatron_kd.errors import ConfigError, InputError

_FIRST_RECORDS = 100  # that are read before a run
_ENDLESS = (
    "warning: the chat template ends an answer with text, not with a special token of the tokenizer, so generation "
    "will not stop there; add the token that the template writes to the tokenizer, or end answers with its eos_token"
)


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
    ignored_keys: Collection[str] = (),
    skip_malformed: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = print,
) -> Counts:
    """Tokenise inputs into `output_prefix`.bin and .idx, which appear when complete and replace older ones.

    `.jsonl` and `.json` files hold one object per line, its text at `json_key`; in `.parquet` files and folders that
    `datasets` has saved, `json_key` is the column; `.txt` and `.py` files are one document each, or one per line with
    `split_lines`. With `chat`, objects and rows are conversations (`data.chat`), rendered by `chat_template` (None: the
    tokenizer's), and `output_prefix`.loss_mask.bin marks the assistant's tokens. What a record says must be in its
    text, except for what it says at `ignored_keys`.

    A run that was stopped or killed resumes from what it has on disk if it is started again with the same arguments
    and unchanged inputs. `workers` None means one per core. `on_progress` is called with the bytes read so far and in
    all, and `say` with a line where a run resumes, or where no token ends an answer.

    Raises:
        InputError: what the checks before any work find, all at once; the file and line of a malformed record, unless
            those are skipped; no document at all; or a disk that fails.
    """
    key = None if chat else json_key
    sources = checked_sources(inputs, output_prefix, json_key=key, split_lines=split_lines)
    dtype = token_type(tokenizer.vocab_size)
    reader, options = _reader(tokenizer, json_key, append_eod, chat, chat_template, ignored_keys)
    made_of = {
        "inputs": [source.identity for source in sources],
        "tokenizer": tokenizer.fingerprint,
        "dtype": dtype.name,
        "options": {**options, "split_lines": split_lines, "skip_malformed": skip_malformed},
    }
    try:
        template = reader.template.default if isinstance(reader, ChatReader) else None
        with PartialOutput(Path(output_prefix), made_of, dtype, with_mask=chat, chat_template=template) as output:
            if output.resumed:
                say(f"{output_prefix}: resumes after {output.progress.counts}")
            _write(output, sources, Encoder(reader, skip_malformed, dtype), workers or _cores(), on_progress)
            if not output.progress.counts.documents:
                raise InputError(f"no document with text in {', '.join(map(str, inputs))}")
            output.finish()
        if isinstance(reader, ChatReader) and ends_by_text_alone(reader.template):
            say(_ENDLESS)
    except BrokenProcessPool as error:
        raise InputError("a worker process died, usually for lack of memory: use fewer --workers") from error
    except OSError as error:
        raise InputError(f"{output_prefix}: {error}") from error
    return output.progress.counts


def _write(
    output: PartialOutput,
    sources: Sequence[Source],
    encoder: Encoder,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Encode what `output` does not have yet, and append it."""
    total = sum(source.size for source in sources)
    stream = read_chunks(sources, output.progress.cursor)
    with contextlib.closing(encode_in_order(stream, encoder, workers)) as encoded:
        for chunk in encoded:
            output.append(chunk)
            if on_progress:
                on_progress(output.progress.file_bytes, total)


def read_first_records(text: str | Path, tokenizer: Tokenizer, *, chat: bool) -> None:
    """Read the first records of a file with a document on each line, of at most one chunk.

    Raises:
        InputError: a file or a record that `preprocess` would refuse.
    """
    sources, wrong = open_sources([text], json_key=None if chat else "text", split_lines=True)
    if wrong:
        raise ConfigError(wrong)
    reader, _ = _reader(tokenizer, "text", True, chat, None, ())
    for chunk in islice(read_chunks(sources, Cursor()), 1):
        for index in range(min(len(chunk.data), _FIRST_RECORDS)):
            reader.read(chunk.record(index))


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


def chat_template_of(tokenizer: Tokenizer, template: str | None = None) -> str:
    """`template` or, where that is None, the tokenizer's own, as text.

    Raises:
        InputError: see `ChatTemplate`.
    """
    return _template(tokenizer, template).text


def _template(tokenizer: Tokenizer, template: str | None, ignored_keys: Collection[str] = ()) -> ChatTemplate:
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise InputError("conversations need a tokenizer of type huggingface, with a chat template")
    return ChatTemplate(tokenizer, template, ignored_keys)


def _reader(
    tokenizer: Tokenizer,
    json_key: str,
    append_eod: bool,
    chat: bool,
    chat_template: str | None,
    ignored_keys: Collection[str],
) -> tuple[Reader, dict[str, Any]]:
    """The reader of the records, and the options that determine its output."""
    if not chat:
        return TextReader(tokenizer, json_key, append_eod), {"json_key": json_key, "append_eod": append_eod}
    template = _template(tokenizer, chat_template, ignored_keys)
    names = template.tokenizer.special_tokens
    return ChatReader(template), {"chat_template": template.text, "names": names, "ignored_keys": sorted(ignored_keys)}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
