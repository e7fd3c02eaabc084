"""Make the demo corpus and its tokenizer from the sources of the Python standard library.

    python tools/make_corpus.py --output data/stdlib --vocab-size 2048

A second call finds the corpus complete, and does nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from megatron_kd.data.preprocessing.corpus import describe, make_corpus
from megatron_kd.errors import MegatronKDError


def main(argv: Sequence[str] | None = None) -> int:
    """Make the corpus and print its counts. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="data/stdlib", metavar="DIR", help="(data/stdlib)")
    parser.add_argument("--vocab-size", type=int, default=2048, metavar="N", help="entries of the tokenizer (2048)")
    parser.add_argument("--source", metavar="DIR", help="folder of *.py files (the standard library)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        manifest = make_corpus(args.output, vocab_size=args.vocab_size, source=args.source, workers=args.workers)
    except MegatronKDError as error:
        print(f"make_corpus: {error}", file=sys.stderr)
        return error.exit_code
    print(describe(manifest))
    print(f"{args.output}: {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
