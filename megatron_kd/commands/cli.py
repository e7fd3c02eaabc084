"""The console command `megatron-kd`.

    megatron-kd validate recipes/tiny/distill_tiny.py --world-size 2 --batch_size 4 model.num_layers=1
    megatron-kd plan recipes/tiny/distill_tiny.py --gpus 2 --memory 16GB model.vocab_size=2048
    megatron-kd launch --local recipes/tiny/distill_tiny.py --nproc 2 train.train_iters=100
    megatron-kd ls
    megatron-kd cp distill_llama32_3b-1b my_runs
    megatron-kd import-hf models/llama --output checkpoints/llama
    megatron-kd export-hf runs/tiny/distilled --output models/student
    megatron-kd prune checkpoints/llama --output checkpoints/half --hidden-size 2048 --data data/corpus
    megatron-kd evaluate runs/tiny/distilled
    megatron-kd generate --student runs/tiny/distilled --teacher runs/tiny/teacher --prompt "def main("
    megatron-kd lm-eval --model runs/tiny/distilled --tasks my_task --include-path tasks
    megatron-kd preprocess --input corpus.jsonl --output-prefix data/corpus --tokenizer data/tokenizer

A command is a module of this folder with a `SUMMARY`, which is a line of `megatron-kd --help`, and the two functions of
`Command`. There is nothing else to register: `lm_eval.py` is `megatron-kd lm-eval`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol, cast

from megatron_kd import __version__
from megatron_kd.errors import MegatronKDError
from megatron_kd.messages import quieten_libraries, tell_as_rank


class Command(Protocol):
    """The module of a command. It imports torch, if at all, in `run`: `--help` and refusals come at once."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code, or raise a `MegatronKDError`, which is printed and gives the code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own).

    Returns:
        The exit code: the command's, or that of the error, which is printed in plain lines on stderr.
    """
    command, args = parse(list(sys.argv[1:] if argv is None else argv))
    quieten_libraries()
    try:
        return command.run(args)
    except MegatronKDError as error:
        tell_as_rank(error)
        return error.exit_code


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command that is called, and its arguments. Exits as argparse does: for help, without words too, or misuse."""
    parser = _Parser(prog="megatron-kd", description="Knowledge distillation on Megatron-core.")
    parser.add_argument("--version", action="version", version=f"megatron-kd {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = {name: subparsers.add_parser(name, help=text, allow_abbrev=False) for name, text in summaries().items()}
    if not argv:
        parser.print_help()
        raise SystemExit(0)
    name = next((word for word in argv if not word.startswith("-")), None)
    if name not in known:
        parser.parse_args(argv)
        raise SystemExit(2)
    command = cast(Command, importlib.import_module(f"{__package__}.{name.replace('-', '_')}"))
    command.add_arguments(known[name])
    argv = _with_dashed_values(argv)
    if known[name].get_default("overrides") is None:
        return command, parser.parse_args(argv)
    from megatron_kd.resolve.flags import joined  # imported by each command that takes overrides anyway

    # argparse does not know the flags of recipes, and would take their values for the recipe.
    args, rest = parser.parse_known_args(joined(argv))
    args.overrides = rest
    return command, args


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as all other errors: `error: --memory: expected one argument`."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")


def _with_dashed_values(argv: Sequence[str]) -> list[str]:
    """`--name -5GB` as `--name=-5GB`: argparse takes the second word for an option, and -h is the only short one."""
    words: list[str] = []
    for word in argv:
        after_option = bool(words) and words[-1].startswith("--") and "=" not in words[-1]
        if after_option and re.match("-[^-]", word) and word != "-h":
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def summaries() -> dict[str, str]:
    """The summary of each command, by name, read from the source without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SUMMARY"]:
                found[path.stem.replace("_", "-")] = str(ast.literal_eval(node.value))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
